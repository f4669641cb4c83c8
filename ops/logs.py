"""Log lines on stderr: a constant event and its fields, one record a line; nothing in a field can begin another line.

The program logs by the standard library (`logger.info("event", extra={…})`); structlog's formatter makes a dictionary
of each record, masks what is secret, and writes it as JSON or for people.
"""

import logging
import math
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog
from structlog.typing import EventDict, WrappedLogger

FIRST = ("time", "level", "logger", "pid", "event")  # of each line, in this order; a field of these names is renamed
TEXT_CHARS = 8_000  # of one text; an exception may have more than fits on a screen
ITEMS = 50  # of a list or a mapping
DEPTH = 3
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_META = ("_record", "_from_structlog")
MASK = "***"
# Names of fields that hold secrets. `request_key` is none: it is the client's own name for its request.
_secret_name = re.compile(
    r"(?:^|_)(?:token|secret|secrets|authorization|password|passwd|cookie|credentials)$|^key$|(?:channel|api|private)_keys?$",
    re.IGNORECASE,
).search
# Secrets inside other texts: what stands before the @ of a URL, what follows Bearer, a channel's key, a ticket or a
# place in a line, a secret of Standard Webhooks, a password of a DSN in the form of names and values.
_SECRETS = (
    (re.compile(r"(://[^/\s:@]*:)[^/\s@]+(?=@)"), rf"\1{MASK}"),
    (re.compile(r"(\bBearer\s+)[^\s\"',]+", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(r"\b(rg[ks]_[0-9a-f]{1,32}_)[A-Za-z0-9_-]+"), rf"\1{MASK}"),
    (re.compile(r"\b(rg[a-z][0-9]\.)[A-Za-z0-9_.-]+"), rf"\1{MASK}"),
    (re.compile(r"\bwhsec_[A-Za-z0-9+/=_-]+"), f"whsec_{MASK}"),
    (re.compile(r"(\b(?:password|passwd|secret|token)\s*=\s*)[^\s&,;]+", re.IGNORECASE), rf"\1{MASK}"),
)
# What ends a line somewhere, or moves a cursor. JSON escapes the control characters by itself, not the others.
_odd = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]")
_ODD_IN_JSON = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]")


def set_up(level: str, form: str = "auto") -> None:
    """All loggers write to stderr from `level` on, in the form of the setting `log_format`."""
    handler = logging.StreamHandler()
    pretty = form == "pretty" or (form == "auto" and sys.stderr.isatty())
    handler.setFormatter(formatter(pretty))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def formatter(pretty: bool) -> logging.Formatter:
    """What makes the text of a record."""
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[_fields, masked],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            as_text if pretty else as_json,
        ],
        keep_exc_info=False,
        keep_stack_info=False,
    )


def _fields(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """When, how bad, who says it, from which process, what; then the record's own fields."""
    record: logging.LogRecord = event["_record"]
    found: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
        "level": record.levelname.lower(),
        "logger": record.name,
        "pid": record.process,
        "event": event["event"],
    }
    for name, value in vars(record).items():
        if name not in _STANDARD and (name, value) != ("pid", record.process):
            found[f"{name}_" if name in (*FIRST, *_META) else name] = value
    if record.exc_info and record.exc_info[0] is not None:
        found["exception"] = logging.Formatter().formatException(record.exc_info)
    return found | {name: event[name] for name in _META}


def masked(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """No secret by its field's name, none inside a text; every value of a kind and size that JSON can have."""
    found = {_text(str(name)): _plain(str(name), value, DEPTH) for name, value in event.items() if name not in _META}
    return found | {name: event[name] for name in _META}


def _plain(name: str, value: Any, depth: int) -> Any:
    if value is not None and not isinstance(value, bool) and value != "" and _secret_name(name):
        return MASK
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bytes):
        return _text(value.decode("utf-8", "backslashreplace"))
    if depth and isinstance(value, Mapping):
        pairs = list(value.items())[:ITEMS]
        return {_text(str(k)): _plain(str(k), v, depth - 1) for k, v in pairs}
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [_plain(name, v, depth - 1) for v in list(value)[:ITEMS]]
    try:
        return _text(str(value) if isinstance(value, BaseException) else repr(value))
    except Exception as exc:  # whatever it is: the line is worth more than its one field
        return f"<{type(value).__name__} without a text: {type(exc).__name__}>"


def _text(text: str) -> str:
    for pattern, mask in _SECRETS:  # first: the rest of a secret that was cut in two looks like none
        text = pattern.sub(mask, text)
    text = text if len(text) <= TEXT_CHARS else f"{text[: TEXT_CHARS // 2]} … {text[-TEXT_CHARS // 2 :]}"
    return text.encode("utf-8", "backslashreplace").decode()


def as_json(logger: WrappedLogger, method: str, event: EventDict) -> str:
    """One JSON object on one line."""
    text = msgspec.json.encode(event).decode()
    return _ODD_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def as_text(logger: WrappedLogger, method: str, event: EventDict) -> str:
    """For people: time, level, logger, event, fields; an exception on lines of its own, all of them indented."""
    fields = {name: value for name, value in event.items() if name not in FIRST}
    exception = fields.pop("exception", "")
    head = f"{event['time']} {event['level']:7} {event['logger']}: {event['event']}"
    line = _shown(head + "".join(f" {name}={value!r}" for name, value in fields.items()))
    return line + "".join(f"\n    {_shown(part)}" for part in str(exception).splitlines())


def _shown(text: str) -> str:
    return _odd.sub(lambda found: repr(found[0])[1:-1], text)
