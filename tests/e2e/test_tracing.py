"""Traces through a whole stack, as a collector and partners of the tests' own see them."""

import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from core.ids import parse
from tests.e2e.conftest import own_gateway
from tests.e2e.support import KEYS, Client, Part, Reply, Up, bearer, until
from tests.e2e.test_lifecycle import callback, cancelled
from tests.support import fresh

CALLER = "00f067aa0ba902b7"


class Server:
    """Answers every POST with 200, and keeps what `read` makes of each."""

    def __init__(self, read: Callable[[BaseHTTPRequestHandler, bytes], list[Any]]) -> None:
        self.seen: list[Any] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(handler) -> None:  # noqa: N805 - as the library wants it
                self.seen.extend(read(handler, handler.rfile.read(int(handler.headers["content-length"]))))
                handler.send_response(200)
                handler.send_header("content-length", "0")
                handler.end_headers()

            def log_message(handler, *_: object) -> None:  # noqa: N805
                """Nowhere."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Seen(NamedTuple):
    """A span as it came."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent: str
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    start_ns: int
    end_ns: int


def spans(_: BaseHTTPRequestHandler, body: bytes) -> list[Seen]:
    request = ExportTraceServiceRequest.FromString(body)
    found = []
    for resource in request.resource_spans:
        [service] = [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
        for span in (span for scope in resource.scope_spans for span in scope.spans):
            attributes = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}
            links = [(link.trace_id.hex(), link.span_id.hex()) for link in span.links]
            ids = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
            times = span.start_time_unix_nano, span.end_time_unix_nano
            found.append(Seen(service, span.name, *ids, attributes, links, *times))
    return found


def messages(handler: BaseHTTPRequestHandler, body: bytes) -> list[tuple[str, str, str]]:
    order_id = json.loads(body)["order_id"]
    return [(handler.path, order_id, handler.headers.get("traceparent", ""))]


class Traced(NamedTuple):
    up: Up
    collector: Server
    partners: Server

    def spans(self, trace_id: str, *names: str) -> dict[str, Seen]:
        """The spans of a trace by name, once these are there."""

        def found() -> dict[str, Seen] | None:
            mine = {s.name: s for s in list(self.collector.seen) if s.trace_id == trace_id}
            return mine if set(names) <= mine.keys() else None

        return dict(until(found))

    def told(self, order_id: str, path: str) -> str:
        """The traceparent of a message to a partner, once it is there."""
        return str(until(lambda: next((t for p, o, t in list(self.partners.seen) if (p, o) == (path, order_id)), None)))

    def paid(self, order_id: str, **more: str) -> Reply:
        def once() -> Reply | None:
            reply = callback(self.up, order_id)
            return reply if reply.status != 503 else None

        return Reply(*until(once))


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    """A stack that traces what its callers ask for, and nothing else."""
    collector, partners = Server(spans), Server(messages)
    env = {
        "RUSHGATE_TRACING": "otlp", "RUSHGATE_TRACING_RATIO": "0", "RUSHGATE_PARTNERS_URL": partners.url,
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "RUSHGATE_CONSOLE": "off",
    }  # fmt: skip
    up = Up(tmp_path_factory.mktemp("traced") / "d", "--port", "0", env=env)
    try:
        yield Traced(up.wait_ready(), collector, partners)
    finally:
        up.end()
        collector.close()
        partners.close()


@pytest.fixture(params=["short way", "long way", "batch"])
def order(request: pytest.FixtureRequest) -> Callable[[Client, str, str], str]:
    """Sends an order with a traceparent on one of the ways; its id."""

    def send(client: Client, campaign: str, traceparent: str) -> str:
        key = fresh("key")
        body: dict[str, Any] = {"buyer_id": fresh("buyer"), "items": [{"sku": "red", "quantity": 1}]}
        headers = bearer(client.channel_key) | {"Idempotency-Key": key, "traceparent": traceparent}
        path = f"/v1/campaigns/{campaign}/orders"
        if request.param == "batch":
            reply = client.call("POST", f"{path}:batch", json.dumps(body | {"request_key": key}).encode(), headers)
            return str(reply.json["order_id"])
        if request.param == "long way":
            headers["Expect"] = "100-continue"
        reply = client.call("POST", path, json.dumps(body).encode(), headers)
        assert reply.status == 202, reply
        return str(reply.json["order_id"])

    return send


def trace_of(client: Client, order_id: str) -> str:
    """As the API tells it, once the ledger has the order."""

    def once() -> Reply | None:
        reply = client.get(f"/v1/orders/{order_id}/trace")
        return reply if reply.status == 200 else None

    return str(until(once).json["trace_id"])


def test_one_trace_leads_from_the_request_to_the_row_to_the_partner_and_back(
    traced: Traced, order: Callable[[Client, str, str], str]
) -> None:
    client, trace_id = traced.up.client, os.urandom(16).hex()
    order_id = order(client, client.sale(), f"00-{trace_id}-{CALLER}-01")
    mine = traced.spans(trace_id, "queue", "reserve", "ledger write", "POST /payment/payment")
    [root] = [s for s in mine.values() if s.parent == CALLER]
    assert root.service == "rushgate-gateway"
    assert root.name.startswith("POST /v1/campaigns/{campaign}/orders")
    assert root.attributes["rushgate.order_id"] == order_id
    assert root.attributes["http.response.status_code"] == 202
    for name, service in (
        ("queue", "gateway"), ("reserve", "gateway"), ("ledger write", "ledger"), ("POST /payment/payment", "relay"),
    ):  # fmt: skip
        assert (mine[name].parent, mine[name].service) == (root.span_id, f"rushgate-{service}")
        assert root.start_ns <= mine[name].start_ns <= mine[name].end_ns
    assert mine["queue"].end_ns <= mine["reserve"].end_ns <= root.end_ns

    # The batch is linked with the order, both ways, and is no part of its trace.
    [(batch_trace, batch_span)] = mine["ledger write"].links
    assert batch_trace != trace_id
    batch = traced.spans(batch_trace, "ledger batch")["ledger batch"]
    assert (batch.span_id, batch.parent) == (batch_span, "")
    assert (trace_id, root.span_id) in batch.links

    # The partner is told the span of the very attempt; what it reports comes back into the trace.
    call = mine["POST /payment/payment"]
    assert traced.told(order_id, "/payment/payment") == f"00-{trace_id}-{call.span_id}-01"
    assert traced.paid(order_id).status == 200
    mine = traced.spans(trace_id, "POST /v1/payments/callback", "POST /warehouse/warehouse")
    assert mine["POST /v1/payments/callback"].parent == root.span_id
    assert trace_of(client, order_id) == trace_id


def test_cancel_and_expiry_are_in_the_trace_of_the_order(traced: Traced) -> None:
    client = traced.up.client
    ids = {}
    campaign = client.sale(pay_within_s=1)
    for what in ("cancel", "expire"):
        trace_id = os.urandom(16).hex()
        body = json.dumps({"buyer_id": what, "items": [{"sku": "red", "quantity": 1}]}).encode()
        headers = bearer(client.channel_key) | {"Idempotency-Key": what, "traceparent": f"00-{trace_id}-{CALLER}-01"}
        into = campaign if what == "expire" else client.sale()
        reply = client.call("POST", f"/v1/campaigns/{into}/orders", body, headers)
        ids[what] = trace_id, str(reply.json["order_id"])
    assert cancelled(client, ids["cancel"][1]).status == 200
    mine = traced.spans(ids["cancel"][0], "POST /v1/orders/{order_id}/cancel")
    assert mine["POST /v1/orders/{order_id}/cancel"].attributes["http.response.status_code"] == 200
    mine = traced.spans(ids["expire"][0], "expire")
    [(batch_trace, _)] = mine["expire"].links
    assert (ids["expire"][0], mine["expire"].parent) in traced.spans(batch_trace, "expire batch")["expire batch"].links


@pytest.mark.parametrize("traceparent", ["", f"00-{'0' * 32}-{CALLER}-01", "00-" + "é" * 52])
def test_garbage_for_a_trace_is_ignored(
    traced: Traced, order: Callable[[Client, str, str], str], traceparent: str
) -> None:
    client = traced.up.client
    order_id = order(client, client.sale(), traceparent.encode().decode("latin-1"))
    raw = parse(order_id) or b""
    assert trace_of(client, order_id) == raw.hex()
    assert traced.told(order_id, "/payment/payment") == f"00-{raw.hex()}-{raw[8:].hex()}-00"


def test_trace_that_is_not_recorded_is_carried_on_all_the_same(
    traced: Traced, order: Callable[[Client, str, str], str]
) -> None:
    client, trace_id = traced.up.client, os.urandom(16).hex()
    order_id = order(client, client.sale(), f"00-{trace_id}-{CALLER}-00")
    assert traced.told(order_id, "/payment/payment") == f"00-{trace_id}-{CALLER}-00"
    assert trace_of(client, order_id) == trace_id
    assert f"trace     {trace_id}" in traced.up.command("order", "show", order_id).stdout
    assert not [s for s in traced.collector.seen if s.trace_id == trace_id]


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def gateway(traced: Traced, log: Path, **env: str) -> Part:
    ready = traced.up.ready
    own = {"RUSHGATE_STORE_URL": ready["store"], "RUSHGATE_LEDGER_DSN": ready["ledger"], "RUSHGATE_PORT": "0"}
    return Part(log, ["gateway"], KEYS | own | env)


def test_collector_that_is_away_harms_no_order(traced: Traced, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{closed_port()}"
    env = {"RUSHGATE_TRACING": "otlp", "RUSHGATE_TRACING_RATIO": "1", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    part = gateway(traced, tmp_path / "log", **env, OTEL_EXPORTER_OTLP_TIMEOUT="1")
    try:
        client = part.gateway()
        campaign = client.sale()
        assert {client.order(campaign).status for _ in range(50)} == {202}
        until(lambda: "spans not exported" in part.text)
        told = client.call("GET", "/metrics", headers=bearer(client.admin_token)).body.decode()
        assert re.search(r"^rushgate_spans_dropped_total [1-9]", told, re.MULTILINE)
        assert client.order(campaign).status == 202
    finally:
        assert part.end() == 0
    assert "Traceback" not in part.text


BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture
def without_extra(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that cannot import OpenTelemetry."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKED)
    root = str(Path(__file__).resolve().parents[2])
    return {"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}


def test_without_the_optional_packages_orders_are_traced_into_a_file(
    traced: Traced, tmp_path: Path, without_extra: dict[str, str]
) -> None:
    path = tmp_path / "spans.jsonl"
    env = {"RUSHGATE_TRACING": "file", "RUSHGATE_TRACING_RATIO": "1", "RUSHGATE_TRACING_FILE": str(path)}
    part = gateway(traced, tmp_path / "log", **env, **without_extra)
    try:
        client = part.gateway()
        order_id = str(client.order(client.sale()).json["order_id"])
    finally:
        assert part.end() == 0
    found = {line["name"]: line for line in map(json.loads, path.read_text().splitlines())}
    root = found["POST /v1/campaigns/{campaign}/orders"]
    assert (root["trace_id"], root["parent_id"]) == ((parse(order_id) or b"").hex(), "")
    assert {found[name]["parent_id"] for name in ("queue", "reserve")} == {root["span_id"]}
    assert trace_of(traced.up.client, order_id) == root["trace_id"]


def test_without_the_optional_packages_a_collector_is_refused_with_the_words_to_mend_it(
    traced: Traced, tmp_path: Path, without_extra: dict[str, str]
) -> None:
    part = gateway(traced, tmp_path / "log", RUSHGATE_TRACING="otlp", **without_extra)
    assert part.process.wait(20) == 78
    assert "pip install '.[tracing]'" in part.text


def test_gateway_without_tracing_keeps_a_callers_trace(stack: Up, both_ways: Client) -> None:
    trace_id = os.urandom(16).hex()
    body = json.dumps({"buyer_id": "b", "items": [{"sku": "red", "quantity": 1}], "ship_to": {
        "name": "A", "phone": "123", "address": "x", "country": "CN"}}).encode()  # fmt: skip
    campaign = both_ways.sale()
    headers = bearer(both_ways.channel_key) | {"Idempotency-Key": "k", "traceparent": f"00-{trace_id}-{CALLER}-01"}
    first = both_ways.call("POST", f"/v1/campaigns/{campaign}/orders", body, headers)
    assert first.status == 202, first
    # Another trace is no other order.
    again = both_ways.call("POST", f"/v1/campaigns/{campaign}/orders", body, headers | {"traceparent": "none"})
    assert again.headers["idempotent-replayed"] == "true"
    assert trace_of(both_ways, first.json["order_id"]) == trace_id
    assert own_gateway(stack).get("RUSHGATE_TRACING") is None  # this is the stack without
