"""What an answer is called in the statistics, and whether the server may give it. Pure: imports nothing of locust.

An expected refusal is an outcome with a name of its own, and no failure. A failure is what no client should ever see:
a 500, no answer at all, a body that breaks the contract, a 503 that does not say when to come again.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import msgspec

Result = Literal["ok", "fail", "unknown"]

# Code -> its words in the statistics. All of them are expected of an order.
ORDER_REFUSALS = {
    "sold_out": "sold out",
    "over_limit": "over limit",
    "not_open": "not open",
    "closed": "closed",
    "paused": "paused",
    "key_reused": "key reused",
    "rate_limited": "rate limited",
    "blocked": "blocked",
}
ORDER_STATUS = {
    "sold_out": 409, "over_limit": 409, "not_open": 409, "closed": 409, "paused": 409, "key_reused": 422,
    "rate_limited": 429, "blocked": 403,
}  # fmt: skip
NOT_ORDERS = {"malformed": 400, "invalid": 422, "unknown_sku": 422, "key_missing": 400, "key_invalid": 400}
MOVES = {"not_allowed": "not allowed", "contradicts": "contradicts", "conflict": "conflict"}


class Told(NamedTuple):
    """One answer, understood. `failure` is empty if the server may answer so."""

    name: str  # in the statistics
    result: Result
    status: int
    code: str = ""
    failure: str = ""
    order_id: str = ""
    replayed: bool = False
    sku: str = ""
    retry_after_s: float = 0.0

    @property
    def accepted(self) -> bool:
        return bool(self.order_id)


class Accepted(msgspec.Struct, gc=False):
    """The body of a 202; all of it must be there."""

    order_id: str
    status: str
    status_url: str
    pay_by: str
    durability: str


class Problem(msgspec.Struct, gc=False):
    """RFC 9457, as far as the contract goes."""

    type: str
    title: str
    status: int
    code: str
    detail: str = ""
    sku: str = ""


class View(msgspec.Struct, gc=False):
    """An order as it stands, as far as a buyer looks."""

    order_id: str
    channel: str
    state: str
    version: int
    amount: int
    currency: str


class LineAccepted(Accepted, gc=False, kw_only=True):
    """A line of a batch that is an order."""

    request_key: str
    http_status: int
    replayed: bool


class LineRefused(Problem, gc=False, kw_only=True):
    """A line of a batch that is none."""

    request_key: str
    http_status: int


_accepted = msgspec.json.Decoder(Accepted).decode
_problem = msgspec.json.Decoder(Problem).decode
_view = msgspec.json.Decoder(View).decode
_line_accepted = msgspec.json.Decoder(LineAccepted).decode
_line_refused = msgspec.json.Decoder(LineRefused).decode


class _Line(msgspec.Struct, gc=False):
    http_status: int


_line = msgspec.json.Decoder(_Line).decode


def order_told(status: int, headers: Mapping[str, str], body: bytes, wrong: bool = False, what: str = "order") -> Told:
    """An answer to an order. `wrong`: the order was meant to be refused as no order at all."""
    if status == 202:
        return _accepted_told(what, status, headers, body, wrong)
    told = _refused_told(what, status, headers, body)
    if told.failure or told.result == "unknown":
        return told
    if told.code in ORDER_REFUSALS:
        return _expected(told, what, ORDER_REFUSALS, ORDER_STATUS)
    if wrong and NOT_ORDERS.get(told.code) == status:
        return told._replace(name=f"{what}: no order, refused")
    return told._replace(failure=f"{status} {told.code}", name=f"{what}: {told.code or status}")


def line_told(body: bytes, key: str) -> Told:
    """One line of the answer to a batch. A line has no headers: its 503 may leave out when to come again."""
    what = "line"
    try:
        status = _line(body).http_status
        if status == 202:
            line = _line_accepted(body)
            same = line.request_key == key and bool(line.order_id)
            failure = "" if same else f"a line of {line.request_key!r} where {key!r} belongs"
            name = "line: replayed" if line.replayed else "line: accepted"
            return Told(name, "ok", 202, "", failure, line.order_id, line.replayed)
        refused = _line_refused(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        return Told("line: broken", "unknown", 0, "", f"the line breaks the contract: {exc}")
    if refused.request_key != key:
        return Told("line: broken", "unknown", 0, "", f"a line of {refused.request_key!r} where {key!r} belongs")
    if status >= 500:
        failure = "" if status == 503 else f"{status} {refused.code}"
        return Told(f"line: {refused.code.replace('_', ' ')} ({status})", "unknown", status, refused.code, failure)
    told = Told(f"line: {refused.code}", "fail", status, refused.code, sku=refused.sku)
    if told.code in ORDER_REFUSALS:
        return _expected(told, what, ORDER_REFUSALS, ORDER_STATUS)
    return told._replace(failure=f"{status} {told.code}")


def view_told(status: int, headers: Mapping[str, str], body: bytes, order_id: str) -> tuple[Told, View | None]:
    """An answer to the question how an order stands. It is there from its 202 on: a 404 is a failure."""
    if status == 200:
        try:
            view = _view(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            return Told("look: broken", "unknown", status, "", f"the body breaks the contract: {exc}"), None
        failure = "" if view.order_id == order_id else f"order {view.order_id} where {order_id} was asked for"
        return Told("look", "ok", status, failure=failure), view
    told = _refused_told("look", status, headers, body)
    if not told.failure and told.result == "fail" and status != 429:
        told = told._replace(failure=f"{status} {told.code}")
    return told, None


def move_told(what: str, status: int, headers: Mapping[str, str], body: bytes) -> Told:
    """An answer to a cancel or a payment. `503 on_its_way` is a fault like any other: again, soon."""
    if status == 200:
        return Told(what, "ok", status)
    told = _refused_told(what, status, headers, body)
    if told.failure or told.result == "unknown" or status == 429:
        return told
    if told.code in MOVES and status == 409:
        return told._replace(name=f"{what}: {MOVES[told.code]}")
    return told._replace(failure=f"{status} {told.code}")


def read_told(what: str, status: int, headers: Mapping[str, str], body: bytes) -> Told:
    """An answer to a reading that always is a 200 unless there is a fault, or too many of them."""
    if status == 200:
        return Told(what, "ok", status)
    told = _refused_told(what, status, headers, body)
    if not told.failure and told.result == "fail" and status != 429:
        told = told._replace(failure=f"{status} {told.code}")
    return told


def _accepted_told(what: str, status: int, headers: Mapping[str, str], body: bytes, wrong: bool) -> Told:
    try:
        found = _accepted(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        return Told(f"{what}: broken", "unknown", status, "", f"the 202 breaks the contract: {exc}")
    replayed = headers.get("idempotent-replayed", "").lower() == "true"
    failure = ""
    if not found.order_id or found.status != "accepted":
        failure = f"a 202 with status {found.status!r} and order id {found.order_id!r}"
    elif wrong:
        failure = f"what is no order became order {found.order_id}"
    name = f"{what}: replayed" if replayed else f"{what}: accepted"
    return Told(name, "ok", status, "", failure, found.order_id, replayed)


def _refused_told(what: str, status: int, headers: Mapping[str, str], body: bytes) -> Told:
    """Anything but a yes. Of a fault nobody knows whether it happened."""
    if status == 0:
        return Told(f"{what}: no answer", "unknown", 0, "", "no answer")
    try:
        found = _problem(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        words = f"{status} whose body is no problem: {exc}"
        return Told(f"{what}: {status}", "unknown" if status >= 500 else "fail", status, "", words)
    if found.status != status:
        words = f"{status} whose body says {found.status}"
        return Told(f"{what}: {status}", "unknown", status, found.code, words)
    after = headers.get("retry-after", "")
    wait_s = float(after) if after.isascii() and after.isdigit() else 0.0
    if status >= 500:
        failure = ""
        if status != 503:
            failure = f"{status} {found.code}"
        elif not after.isdigit():
            failure = f"503 {found.code} without Retry-After"
        name = f"{what}: {found.code.replace('_', ' ')} (503)" if status == 503 else f"{what}: {status}"
        return Told(name, "unknown", status, found.code, failure, retry_after_s=wait_s)
    name = f"{what}: {found.code.replace('_', ' ')}"
    return Told(name, "fail", status, found.code, sku=found.sku, retry_after_s=wait_s)


def _expected(told: Told, what: str, words: Mapping[str, str], statuses: Mapping[str, int]) -> Told:
    failure = "" if statuses[told.code] == told.status else f"{told.code} with status {told.status}"
    return told._replace(name=f"{what}: {words[told.code]}", failure=failure)
