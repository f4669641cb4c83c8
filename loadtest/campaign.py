"""What the rush must know of a campaign: its SKUs and its limits, asked for over HTTP."""

from urllib.parse import quote

import msgspec

from loadtest.client import fetch
from loadtest.exchange import Answer, Target


class RushError(Exception):
    """The rush cannot be run: the campaign did not answer, or not usably. No order was sent."""


class Sku(msgspec.Struct, frozen=True):
    """`price` is in minor units of the campaign's currency."""

    sku: str
    name: str = ""
    price: int = 0


class Campaign(msgspec.Struct, frozen=True):
    """The fields of `GET /v1/campaigns/{campaign}` that a crowd needs; all others are ignored.

    `limits` are units per buyer, `buyer_sku`, `ip` and `device`; a limit left out, or null, is no limit.
    """

    campaign: str
    skus: tuple[Sku, ...]
    state: str = ""
    currency: str = ""
    limits: dict[str, int | None] = {}


_decode = msgspec.json.Decoder(Campaign).decode


def request_head(method: str, path: str, target: Target, channel_key: str) -> bytes:
    """The request line and the headers every request of a rush shares, without the empty line at the end.

    Raises:
        ValueError: the key is not printable ASCII, so that it could not be one header value.
    """
    if not (channel_key.isascii() and channel_key.isprintable()):
        raise ValueError("channel key: has characters that cannot be sent in a header")
    lines = (f"{method} {path} HTTP/1.1", f"host: {target.authority}", f"authorization: Bearer {channel_key}")
    return "".join(f"{line}\r\n" for line in lines).encode()


def orders_path(campaign: str) -> str:
    return f"/v1/campaigns/{quote(campaign, safe='')}/orders"


async def ask_campaign(target: Target, campaign: str, channel_key: str, timeout_s: float) -> Campaign:
    """Read the campaign.

    Raises:
        RushError: no answer within `timeout_s`, not a 200, a body of another shape, or no SKU at all.
    """
    path = f"/v1/campaigns/{quote(campaign, safe='')}"
    answer = await fetch(target, request_head("GET", path, target, channel_key) + b"\r\n", timeout_s)
    where = f"GET {path} on {target.authority}"
    if answer.status == 0:
        raise RushError(f"{where}: no answer ({answer.failure})")
    if answer.status != 200:
        raise RushError(f"{where}: answered {_told(answer)}")
    try:
        found = _decode(answer.body)
    except msgspec.DecodeError as exc:
        raise RushError(f"{where}: not the answer of a campaign: {exc}") from exc
    if not found.skus:
        raise RushError(f"{where}: the campaign has no SKUs")
    return found


class _Problem(msgspec.Struct, frozen=True):
    code: str
    title: str = ""
    detail: str = ""


def _told(answer: Answer) -> str:
    """Status, code and words of a refusal; of a body that is no problem, its beginning."""
    try:
        problem = msgspec.json.decode(answer.body, type=_Problem)
    except msgspec.DecodeError:
        return f"{answer.status} {answer.body[:80].decode(errors='replace')}".rstrip()
    words = f"{answer.status} {problem.code}"
    return f"{words}: {problem.detail or problem.title}" if problem.detail or problem.title else words
