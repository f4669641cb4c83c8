"""A history: what clients asked, what they were answered and which faults were made, one JSON line an event.

The first line is the Header, the last one `end`; a file without it was broken off, and says so when it is read. Times
are nanoseconds of the recording machine's monotonic clock; the header ties them to its wall clock.

    {"t":"invoke","at_ns":…,"n":7,"op":"order","channel":"app","key":"k1","body":"<hash>","buyer":"b1","items":[["a",1]]}
    {"t":"ok","at_ns":…,"n":7,"status":202,"order_id":"…"}

`ok` is a definite yes, `fail` a definite no (nothing happened), `unknown` anything else: a timeout, a broken
connection, a 503. An operation without an answer is unknown too.
"""

import time
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from sys import intern
from types import TracebackType
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

VERSION = 1
BUFFER_BYTES = 1 << 18  # of events in memory, before they are written in one piece
LINE_BYTES_MAX = 1 << 20  # a longer line is not one of ours
Items: TypeAlias = tuple[tuple[str, int], ...]  # SKU, units
Result: TypeAlias = Literal["ok", "fail", "unknown"]


class HistoryInvalid(ValueError):
    """The file is no history, or contradicts itself; the message names the line or the operation."""


class Header(Struct, frozen=True):
    """What the whole history is of; `settings` is free."""

    v: int
    campaign: str
    started_wall_ns: int
    started_mono_ns: int
    settings: dict[str, Any] = {}


class Event(Struct, tag_field="t", tag=str.lower, omit_defaults=True, gc=False):
    """One line after the first."""

    at_ns: int


class Invoke(Event, gc=False):
    """A client asks. `body` is a hash of what the key stands for; `sku`, `units` and `move_id` are of a restock."""

    n: int
    op: str
    channel: str = ""
    key: str = ""
    body: str = ""
    buyer: str = ""
    ip: str = ""
    device: str = ""
    items: Items = ()
    order_id: str = ""
    sku: str = ""
    units: int = 0
    move_id: str = ""


class Answer(Event, gc=False):
    """What became of an operation. `sku` is of a `sold_out`."""

    n: int
    status: int = 0
    code: str = ""
    order_id: str = ""
    replayed: bool = False
    sku: str = ""


class Ok(Answer, gc=False):
    """A definite yes."""


class Fail(Answer, gc=False):
    """A definite no: nothing happened."""


class Unknown(Answer, gc=False):
    """It may have happened, or not, or may still happen."""


class Fault(Event, gc=False):
    """The nemesis begins to do harm."""

    name: str
    detail: str = ""


class Mending(Event, gc=False):
    """The harm of this name is being undone from here on: what was killed is started again, and so on."""

    name: str


class Healed(Event, gc=False):
    """The harm of this name is over."""

    name: str


class End(Event, gc=False):
    """The recorder was closed: nothing is missing."""


class Operation(Struct, gc=False):
    """A question and its answer; None: there was none."""

    ask: Invoke
    answer: Answer | None = None

    @property
    def result(self) -> Result:
        if isinstance(self.answer, Ok):
            return "ok"
        return "fail" if isinstance(self.answer, Fail) else "unknown"


class History(Struct):
    """A history as read back: operations in the order of their numbers' first line, faults as they came."""

    header: Header
    operations: list[Operation]
    faults: list[Fault | Mending | Healed]
    end_ns: int  # of the latest event
    whole: bool  # it was closed; False: what came last may be missing

    def mono_ns(self, wall_ns: int) -> int:
        """The moment of a wall clock reading, by the clock of the events."""
        return wall_ns - self.header.started_wall_ns + self.header.started_mono_ns


class Recorder:
    """Writes a history. One per file; for one thread; events are on disk after `close`, not before.

    A write that fails (a full disk) raises OSError where it happens: a history with a hole proves nothing.
    """

    def __init__(self, path: Path, campaign: str, settings: dict[str, Any] | None = None) -> None:
        """Start a new file. Raises FileExistsError rather than overwrite one."""
        self._file = path.open("xb", buffering=BUFFER_BYTES)
        self._encode = msgspec.json.Encoder().encode
        self._next = 0
        header = Header(VERSION, campaign, time.time_ns(), time.monotonic_ns(), settings or {})
        self._file.write(self._encode(header) + b"\n")

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def order(
        self, channel: str, key: str, body: str, buyer: str, items: Sequence[tuple[str, int]],
        ip: str = "", device: str = "", at_ns: int | None = None,
    ) -> int:  # fmt: skip
        """An order is about to be sent; returns the operation's number."""
        self._next += 1
        at_ns = time.monotonic_ns() if at_ns is None else at_ns
        self._put(Invoke(at_ns, self._next, "order", channel, key, body, buyer, ip, device, tuple(items)))
        return self._next

    def act(
        self, op: str, order_id: str = "", sku: str = "", units: int = 0, move_id: str = "", at_ns: int | None = None
    ) -> int:
        """Anything else is about to be sent: `cancel`, `pay`, `restock`, …; returns the operation's number."""
        self._next += 1
        at_ns = time.monotonic_ns() if at_ns is None else at_ns
        self._put(Invoke(at_ns, self._next, op, order_id=order_id, sku=sku, units=units, move_id=move_id))
        return self._next

    def ok(
        self, n: int, status: int, order_id: str = "", replayed: bool = False, code: str = "", at_ns: int | None = None
    ) -> None:
        """Operation `n` was answered with a definite yes."""
        self._put(Ok(time.monotonic_ns() if at_ns is None else at_ns, n, status, code, order_id, replayed))

    def fail(self, n: int, status: int, code: str, sku: str = "", at_ns: int | None = None) -> None:
        """Operation `n` was answered with a definite no."""
        self._put(Fail(time.monotonic_ns() if at_ns is None else at_ns, n, status, code, sku=sku))

    def unknown(self, n: int, status: int = 0, code: str = "", at_ns: int | None = None) -> None:
        """Nobody knows what became of operation `n`; status 0: there was no answer."""
        self._put(Unknown(time.monotonic_ns() if at_ns is None else at_ns, n, status, code))

    def fault(self, name: str, detail: str = "") -> None:
        """The nemesis begins."""
        self._put(Fault(time.monotonic_ns(), name, detail))

    def mending(self, name: str) -> None:
        """The nemesis begins to undo what it did: the time to heal counts from here."""
        self._put(Mending(time.monotonic_ns(), name))

    def healed(self, name: str) -> None:
        """The nemesis has undone what it did."""
        self._put(Healed(time.monotonic_ns(), name))

    def close(self) -> None:
        """Everything is written, and the history is whole. Again: nothing."""
        if not self._file.closed:
            try:
                self._put(End(time.monotonic_ns()))
            finally:
                self._file.close()

    def _put(self, event: Event) -> None:
        self._file.write(self._encode(event) + b"\n")


def body_hash(body: bytes) -> str:
    """16 characters that stand for a body."""
    return blake2b(body, digest_size=8).hexdigest()


_decode_event = msgspec.json.Decoder(Invoke | Ok | Fail | Unknown | Fault | Mending | Healed | End).decode


def read_history(path: Path) -> History:
    """The history of a file; a last line that was cut is left out.

    Raises: OSError; HistoryInvalid for a line that is none of ours, a number used twice, an answer to nothing.
    """
    with path.open("rb") as file:
        first = file.readline(LINE_BYTES_MAX)
        if not first:
            raise HistoryInvalid(f"{path} is empty: no history was recorded in it")
        try:
            header = msgspec.json.decode(first, type=Header)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise HistoryInvalid(f"{path}: line 1 is no header: {exc}") from exc
        if header.v != VERSION:
            raise HistoryInvalid(f"{path}: version {header.v}, this checker reads {VERSION}")
        asked: dict[int, Operation] = {}
        faults: list[Fault | Mending | Healed] = []
        end_ns, whole = header.started_mono_ns, False
        same: dict[Items, Items] = {}
        number = 1
        while line := file.readline(LINE_BYTES_MAX):
            number += 1
            if not line.endswith(b"\n") and len(line) < LINE_BYTES_MAX:
                break  # cut: the recorder was killed
            try:
                event = _decode_event(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as exc:
                raise HistoryInvalid(f"{path}: line {number}: {exc}") from exc
            end_ns = max(end_ns, event.at_ns)
            if isinstance(event, Invoke):
                if event.n in asked:
                    raise HistoryInvalid(f"{path}: line {number}: operation {event.n} begins twice")
                event.op, event.channel = intern(event.op), intern(event.channel)
                units = summed(event.items)
                event.items = same.setdefault(units, units)  # a million baskets, of few kinds
                asked[event.n] = Operation(event)
            elif isinstance(event, Answer):
                operation = asked.get(event.n)
                if operation is None or operation.answer is not None:
                    what = "was never asked" if operation is None else "is answered twice"
                    raise HistoryInvalid(f"{path}: line {number}: operation {event.n} {what}")
                event.code = intern(event.code)
                operation.answer = event
            elif isinstance(event, End):
                whole = True
            else:
                faults.append(event)
    return History(header, list(asked.values()), faults, end_ns, whole)


def summed(items: Sequence[tuple[str, int]]) -> Items:
    """A basket with each SKU once, in the order of their names."""
    if len(items) == 1:
        return tuple(items)
    units: Counter[str] = Counter()
    for sku, quantity in items:
        units[sku] += quantity
    return tuple(sorted(units.items()))
