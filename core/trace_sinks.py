"""Where spans go: to a collector by OTLP over HTTP, or into a file, a line of JSON each.

OpenTelemetry is an optional part (`pip install '.[tracing]'`): it is imported when spans are to be sent to a
collector, and at no other time.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from core.errors import ConfigInvalid
from core.settings import Settings
from core.tracing import Exporter, Sink, Span, Tracer

FILE = "spans.jsonl"
FILE_BYTES = 256 << 20  # beyond it the file takes no more spans


class FileFull(Exception):
    """The file has FILE_BYTES."""


def tracer_of(settings: Settings, process: str, name: str, environ: Mapping[str, str] = os.environ) -> Tracer | None:
    """What traces orders in this process; None = nothing does. `process`: its kind, e.g. `gateway`.

    `environ`: for the variables of OpenTelemetry. Raises: ConfigInvalid.
    """
    if settings.tracing == "off":
        return None
    sink: Sink
    if settings.tracing == "file":
        sink = FileSink(Path(settings.tracing_file or Path(settings.data_dir) / FILE), process, name)
    else:
        sink = OtlpSink(process, name, environ)
    return Tracer(Exporter(sink), settings.tracing_ratio, settings.tracing_max_per_s)


class FileSink:
    """Appends to a file that several processes share."""

    def __init__(self, path: Path, process: str, name: str, most_bytes: int = FILE_BYTES) -> None:
        """Raises: ConfigInvalid if the file cannot be written."""
        self._process = process
        self._name = name
        self._most_bytes = most_bytes
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise ConfigInvalid(f"RUSHGATE_TRACING_FILE: {path} cannot be written: {exc.strerror}") from exc

    def write(self, spans: Sequence[Span]) -> None:
        if os.fstat(self._file).st_size >= self._most_bytes:
            raise FileFull(f"the file of spans has {self._most_bytes} bytes: move it away")
        lines = b"".join(msgspec.json.encode(self._line(span)) + b"\n" for span in spans)
        # In one call: what other processes write stands before or behind it, never in it.
        if os.write(self._file, lines) != len(lines):
            raise OSError("the file of spans took a part only")

    def close(self) -> None:
        """Nothing waits; the file is closed with the process."""

    def _line(self, span: Span) -> dict[str, Any]:
        return {
            "process": self._process,
            "instance": self._name,
            "name": span.name,
            "kind": span.kind,
            "trace_id": span.context.trace_id.hex(),
            "span_id": span.context.span_id.hex(),
            "parent_id": span.parent.hex(),
            "start_ns": span.start_ns,
            "end_ns": span.end_ns,
            "duration_ms": round((span.end_ns - span.start_ns) / 1e6, 3),
            "attributes": span.attributes,
            "links": [{"trace_id": link.trace_id.hex(), "span_id": link.span_id.hex()} for link in span.links],
            "error": span.error,
        }


class OtlpSink:
    """A collector at OTEL_EXPORTER_OTLP_ENDPOINT, `http://localhost:4318` if that is not set."""

    def __init__(self, process: str, name: str, environ: Mapping[str, str]) -> None:
        """Raises: ConfigInvalid if the optional packages are not there."""
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import ReadableSpan
            from opentelemetry.sdk.trace.export import SpanExportResult
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        except ImportError as exc:
            raise ConfigInvalid(
                "RUSHGATE_TRACING=otlp needs more packages: pip install '.[tracing]' in the project's folder"
                f" ({exc.name or exc} is not there)"
            ) from exc
        # It says of each batch again what we say once in a while.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        attributes = {"service.namespace": "rushgate", "service.instance.id": name}
        if not environ.get("OTEL_SERVICE_NAME"):
            attributes["service.name"] = f"rushgate-{process}"
        resource = Resource.create(attributes)
        scope = InstrumentationScope("rushgate")
        self._exporter = OTLPSpanExporter()
        self._success = SpanExportResult.SUCCESS
        kinds = {kind: trace.SpanKind[kind.upper()] for kind in ("server", "client", "consumer", "internal")}

        def context(trace_id: bytes, span_id: bytes) -> Any:
            flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
            number, span_number = int.from_bytes(trace_id, "big"), int.from_bytes(span_id, "big")
            return trace.SpanContext(number, span_number, is_remote=False, trace_flags=flags)

        def readable(span: Span) -> Any:
            own = span.context
            status = trace.Status(trace.StatusCode.ERROR, span.error) if span.error else trace.Status()
            return ReadableSpan(
                span.name,
                context(own.trace_id, own.span_id),
                context(own.trace_id, span.parent) if span.parent else None,
                resource,
                dict(span.attributes),
                links=[trace.Link(context(link.trace_id, link.span_id)) for link in span.links],
                kind=kinds[span.kind],
                status=status,
                start_time=span.start_ns,
                end_time=span.end_ns,
                instrumentation_scope=scope,
            )

        self._readable = readable

    def write(self, spans: Sequence[Span]) -> None:
        if self._exporter.export([self._readable(span) for span in spans]) is not self._success:
            raise OSError("the collector did not take them")

    def close(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]
