"""What a buyer is told of their place: how it stands, how long it may take, and when to ask again."""

import random
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from core.lot import place
from gateway.replies import time_text
from lua.room import Phase, Standing

When = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]  # as text: it is made a thousand times a second
State = Literal["before", "waiting", "admitted", "lapsed", "gone", "closed"]

FAR_S = 60.0  # longest pause between two questions before the opening
SLOW_S = 20.0  # of those who wait
GONE_S = 30.0  # of those for whom nothing is left: a restock, or a refund, may bring something back
OPENING_RATE = 2_000.0  # questions a second that the first ones after the opening are spread to, over SPREAD_S at most
SPREAD_S = 20.0


class Stock(NamedTuple):
    """Units of a campaign over all its shards, as last seen. `sure`: seen so twice in a row, nothing on its way."""

    left: int
    held: int
    sure: bool

    @property
    def gone(self) -> bool:
        """Whether nothing may be bought any more: every unit is sold."""
        return self.sure and not self.left and not self.held


class Pace(NamedTuple):
    """What was measured lately, a second: places admitted, units sold or held. 0.0 = nothing moved."""

    admitted: float
    taken: float


class LineView(msgspec.Struct, frozen=True, kw_only=True):
    """How a place stands. null = there is no saying.

    `place`: 1 is the first; before the opening nobody has one. `ahead`: buyers who are still before this one, at most.
    `may_return`: nothing is left now, but so many units are held by orders that may not be paid.
    `stock_lasts_s`: when what is left will be sold out at the present pace; below `estimate_s` the chances are poor.
    """

    state: State
    admitted: bool
    place: int | None
    ahead: int | None
    joined: int
    estimate_s: float | None
    stock_lasts_s: float | None
    may_return: int
    opens_at: When
    poll_after_ms: int | None
    ticket: str | None = None
    ticket_expires_at: When | None = None
    line: str | None = None  # the signed place: to whoever joins
    buyer_id: str | None = None  # whom place and ticket are for: a guest learns their name by it


def place_of(now: Standing, number: int) -> int | None:
    """The place of a number; None before the draw, if it takes part."""
    if now.early < 0:
        return None
    return place(now.seed, now.early, number) if number <= now.early else number


def state_of(now: Standing, stock: Stock, number: int) -> State:
    """How a number stands. What is said first counts more: who has a ticket has it until it ends."""
    if now.phase is Phase.CLOSED:
        return "closed"
    at = place_of(now, number)
    if at is None or now.phase is Phase.BEFORE:
        return "before"
    if at <= now.lapsed:
        return "lapsed"
    if stock.gone:
        return "gone"
    return "admitted" if now.until_ms(at) > now.now_ms else "waiting"


def estimate_s(now: Standing, stock: Stock, pace: Pace, ahead: int) -> float | None:
    """How long those ahead will take, at the rate that was measured, or that is set; None if nobody is admitted."""
    rate = pace.admitted or now.rate
    if now.phase is not Phase.OPEN or rate <= 0 or not stock.left:
        return None
    return round((ahead + 1) / rate, 1)


def poll_after_s(now: Standing, state: State, wait_s: float | None) -> float | None:
    """When it is worth to ask again: the further away, the later; spread, so that not all ask at once."""
    jitter = 0.75 + random.random() / 2  # noqa: S311 - nobody gains by guessing it
    if state == "before":
        opens_s = (now.opens_ms - now.now_ms) / 1000
        if opens_s > FAR_S:
            return FAR_S * jitter
        return max(0.5, opens_s) + (jitter - 0.75) * 2 * min(SPREAD_S, now.joined / OPENING_RATE)
    if state == "waiting":
        return max(1.0, min(SLOW_S, (wait_s if wait_s is not None else SLOW_S) / 3)) * jitter
    return GONE_S * jitter if state == "gone" else None


def show(now: Standing, stock: Stock, pace: Pace, number: int, crowding: float = 1.0) -> LineView:
    """How a number stands, without its ticket. `crowding`: how many times longer than else the pauses should be."""
    state = state_of(now, stock, number)
    at = place_of(now, number) if state != "before" else None
    ahead = now.buyers(now.admitted + 1, at - 1) if at is not None and state == "waiting" else None
    wait_s = estimate_s(now, stock, pace, ahead) if ahead is not None else None
    pause_s = poll_after_s(now, state, wait_s)
    if pause_s is not None and state != "before":
        pause_s *= crowding
    selling = now.phase is Phase.OPEN and stock.left > 0 and pace.taken > 0
    return LineView(
        state=state,
        admitted=state == "admitted",
        place=at,
        ahead=ahead,
        joined=now.joined,
        estimate_s=wait_s,
        stock_lasts_s=round(stock.left / pace.taken, 1) if selling else None,
        may_return=stock.held if not stock.left and now.phase is Phase.OPEN else 0,
        opens_at=time_text(now.opens_ms),
        poll_after_ms=None if pause_s is None else int(pause_s * 1000),
    )
