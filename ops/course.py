"""From the rush to the end: returned units are sold again until none is left, and every order has come to an end."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import msgspec

from core.errors import Fault
from core.flows import FLOWS
from core.flows.table import Flow
from core.ledger.pool import ask
from core.ledger.queries import query
from core.model import CampaignSpec
from loadtest.client import fetch
from loadtest.exchange import Target
from loadtest.options import RushOptions
from loadtest.report import RushReport
from loadtest.rush import rush
from lua.keys import home_shards, sale_keys
from lua.scripts import Scripts
from ops.desk import Desk

POLL_S = 0.25
CROWD_MIN = 50
CROWD_MAX = 1_000
# A crowd comes only while fewer orders wait for their payment, and fewer messages and callbacks for their delivery.
# Without it a machine that is too slow for the next crowd falls behind for good: asked or heard too late, nobody pays
# in time, and every unit comes back.
UNPAID_MAX = 500
WAITING_MAX = 500
DUE_MAX = 200
CROWD_SPREAD_S = 0.5
CROWD_CONNECTIONS = 64
CONTROL_TIMEOUT_S = 5.0
UNHELD = "reserve_at_payment"  # the order type whose orders hold no units until they are paid


class Standing(NamedTuple):
    """Where a campaign is. Orders, unless a name says units or messages."""

    states: dict[str, int]
    moves: int  # of all orders since they began
    accepted: int  # by the store
    on_sale: int  # units that a request could get now
    left: int  # units, with those that wait for a moment until they are on sale
    held: int  # units
    waits: str = ""  # what the next crowd, or the end, waits for: in words

    def ended(self, flow: Flow) -> int:
        return sum(n for state, n in self.states.items() if state in flow.ends)

    def open(self, flow: Flow) -> int:
        """Not at an end, on their way to the ledger included."""
        return self.accepted - self.ended(flow)

    def over(self, flow: Flow) -> bool:
        """Nothing is left to sell, and no order is open."""
        return not (self.left or self.held or self.open(flow))


class Unsent(NamedTuple):
    """Messages that nobody has had."""

    waiting: int
    dead: int


class Callbacks(NamedTuple):
    """Of the partners: all that they will send, and those of them whose time has come."""

    pending: int
    due: int


class PartnersSilent(Fault):
    """The partners do not say what they have in hand."""

    code = "partners_silent"


class Course:
    """What happens to one campaign after its rush.

    Args:
        options: of a rush on it; the crowds that buy the returned units are like it, but smaller.
        played: URL of the partners if the stack plays them, else "": what is on its way from them is then not known.
    """

    def __init__(self, desk: Desk, spec: CampaignSpec, shards: int, options: RushOptions, played: str) -> None:
        self.flow = FLOWS[spec.order_type]
        self.home = home_shards(options.campaign, spec.spread, shards)
        self.crowds: list[RushReport] = []
        self.seconds = 0.0  # that `run` took
        self.over = False  # `run` has seen the end
        self._unheld = spec.order_type == UNHELD
        self._desk = desk
        self._scripts = Scripts(desk.store)
        self._options = options
        self._played = Target.from_url(played) if played else None

    @property
    def accepted_later(self) -> int:
        """Orders of the crowds after the rush."""
        return sum(len(report.accepted_orders) for report in self.crowds)

    async def run(self, within_s: float, show: Callable[[Standing, float], None]) -> Standing:
        """The last standing: that of the end, or what it was when `within_s` had passed. `show` is called 4 times a
        second.

        Raises: RushError; Fault if store, ledger or partners are away at the end of the time.
        """
        began_s, waits = time.monotonic(), ""
        crowd: asyncio.Task[RushReport] | None = None
        try:
            while True:
                self.seconds = time.monotonic() - began_s
                late = self.seconds >= within_s
                try:
                    standing = await self.look()
                    show(standing._replace(waits=waits), self.seconds)
                    self.over = crowd is None and await self._is_the_end(standing)
                    if late or self.over:
                        return standing
                    units = standing.on_sale - self._wanted(standing)
                    waits = ""
                    if crowd is None and units > 0:
                        waits = await self._behind(standing)
                    elif crowd is None and standing.over(self.flow):
                        waits = "the partners' last callbacks; money that comes late opens an ended order again"
                    if crowd is None and units > 0 and not waits:
                        crowd = asyncio.create_task(rush(self._crowd(units)))
                except Fault:
                    if late:
                        raise
                await asyncio.sleep(POLL_S)
                if crowd is not None and crowd.done():
                    self.crowds.append(crowd.result())
                    crowd = None
        finally:
            if crowd is not None:
                crowd.cancel()
                await asyncio.gather(crowd, return_exceptions=True)

    async def look(self) -> Standing:
        """The standing now. Raises: StoreUnavailable, LedgerUnavailable."""
        # The ledger first: what it has, the store has accepted.
        rows = await self._rows(query("count_states"))
        readings = await self._scripts.audit([sale_keys(shard, self._options.campaign) for shard in self.home])
        return Standing(
            states={row["state"]: row["orders"] for row in rows},
            moves=sum(row["moves"] for row in rows),
            accepted=sum(r.seq for r in readings),
            on_sale=sum(r.on_sale(sku) for r in readings for sku in r.left),
            left=sum(sum(r.left.values()) for r in readings),
            held=sum(sum(r.held.values()) for r in readings),
        )

    async def unsent(self) -> Unsent:
        """Raises: LedgerUnavailable."""
        [row] = await self._rows(query("count_messages"))
        return Unsent(row["waiting"], row["dead"])

    async def units(self) -> dict[str, int]:
        """Units of the orders by their state. Raises: LedgerUnavailable."""
        return {row["state"]: row["units"] for row in await self._rows(query("ordered_units"))}

    async def times(self) -> tuple[list[Any], list[Any]]:
        """The rows of move_times and of delivery_times. Raises: LedgerUnavailable."""
        return await self._rows(query("move_times")), await self._rows(query("delivery_times"))

    async def _rows(self, text: str) -> list[Any]:
        found: list[Any] = await ask(partial(self._desk.ledger.fetch, text, self.home, self._options.campaign))
        return found

    async def _is_the_end(self, standing: Standing) -> bool:
        """Whether nothing will move any more. An order that expired may yet be paid late: the partners know."""
        if not standing.over(self.flow) or (await self.unsent()).waiting or (await self._callbacks()).pending:
            return False
        # Whatever came in before the partners had nothing more to send has left its mark by now.
        return (await self.look()).moves == standing.moves and not (await self.unsent()).waiting

    async def _callbacks(self) -> Callbacks:
        """What the partners have in hand; nothing is known of partners that the stack does not play."""
        if self._played is None:
            return Callbacks(0, 0)
        head = f"GET /control HTTP/1.1\r\nhost: {self._played.authority}\r\n\r\n"
        answer = await fetch(self._played, head.encode(), CONTROL_TIMEOUT_S)
        if answer.status != 200:
            raise PartnersSilent(f"the partners answer {answer.status or answer.failure}")
        state = msgspec.json.decode(answer.body)
        return Callbacks(state["pending_callbacks"], state["due_callbacks"])

    async def _behind(self, standing: Standing) -> str:
        """What has to become less before the next crowd comes; '' = nothing."""
        if (unpaid := standing.states.get(self.flow.first, 0)) >= UNPAID_MAX:
            return f"{unpaid:,} orders to be paid or to expire"
        if (due := (await self._callbacks()).due) >= DUE_MAX:
            return f"{due:,} callbacks of the partners, late payments among them"
        if (waiting := (await self.unsent()).waiting) >= WAITING_MAX:
            return f"{waiting:,} messages in the outbox"
        return ""

    def _wanted(self, standing: Standing) -> int:
        """Units on sale that orders without units in their hold may still take."""
        return sum(standing.states.get(s, 0) for s in ("accepted", "allocating")) if self._unheld else 0

    def _crowd(self, units: int) -> RushOptions:
        return msgspec.structs.replace(
            self._options,
            buyers=min(CROWD_MAX, max(CROWD_MIN, 2 * units)),
            spread_s=CROWD_SPREAD_S,
            connections=CROWD_CONNECTIONS,
            run_id="",  # a new crowd each time
        )
