"""Goods and virtual orders over random histories, on the real ledger and store: they stand where their table says, the
money fits, units and limits come back once.

Every action is tried in every state by every actor; what the table does not have is refused and changes nothing.
"""

import asyncio
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from core.desk.audit import Auditor
from core.desk.campaigns import CampaignDesk
from core.desk.orders import PARTNERS
from core.flows import FLOWS
from core.flows.table import Actor
from core.ledger.pool import Pool, open_pool
from core.settings import Settings
from lua.connection import SharedConnection
from tests.ledger.flow_machine import FlowMachine
from tests.ledger.flow_world import World
from tests.ledger.invariants import invariants
from tests.ledger.support import Sale


class GoodsMachine(FlowMachine):
    """From the payment to the parcel, and back."""

    flow = FLOWS["goods"]
    never = {("completed", "reject_refund")}  # noqa: RUF012 - completing waits for the review
    seen = Counter()  # noqa: RUF012 - declared by the base
    ways = [  # noqa: RUF012 - declared by the base
        "", "pay", "pay suspend", "pay pick", "pay pick cancel", "pay pick ship", "pay pick ship receive",
        "pay pick ship return", "pay ask", "pay pick ask cancel", "pay ask pick ship return", "pay ask suspend",
        "fail pay pick urge", "pay pick ship receive complete", "cancel pay", "expire pay", "pay ask cancel",
        "pay ask approve", "pay pick ship ask reject receive", "pay pick ship receive complete_early",
        "pay pick ship return goods_back", "pay pick ship return reject_return", "pay pick cancel recalled",
        "pay pick cancel lost",
    ]  # fmt: skip


class VirtualMachine(FlowMachine):
    """Provisioning and billing side by side, in either order, with either failing."""

    flow = FLOWS["virtual"]
    seen = Counter()  # noqa: RUF012 - declared by the base
    ways = [  # noqa: RUF012 - declared by the base
        "", "pay", "pay provisioned", "pay billed", "pay provisioned billed", "pay billed provisioned",
        "pay provision_failed", "pay bill_failed", "pay provisioned bill_failed", "pay billed provision_failed",
        "pay provision_failed billed", "pay bill_failed provisioned", "pay provision_failed bill_failed",
        "pay provisioned billed ask", "pay provisioned bill_failed unprovisioned", "fail pay urge", "cancel pay",
        "expire pay", "pay provisioned billed ask approve", "pay billed provisioned ask reject",
        "pay billed provision_failed unbilled",
    ]  # fmt: skip

    @rule(partner=st.sampled_from(["provisioning", "billing"]), data=st.data())
    def report(self, partner: Actor, data: st.DataObject) -> None:
        """In the partner's own words or in the flow's, in time or out of time, again and again."""
        words = PARTNERS[partner]
        word = data.draw(st.sampled_from([*words, *words.values(), "provision_failed", "bill_failed"]))
        self.expect(words.get(word, word), partner, self.orders.report(self.order, partner, word))

    @rule(action=st.sampled_from(["provision_failed", "bill_failed", "unprovisioned", "unbilled"]))
    def declare(self, action: str) -> None:
        """An operator says what the partner cannot."""
        self.make(action, "operator")


@pytest.mark.parametrize("machine", [GoodsMachine, VirtualMachine], ids=["goods", "virtual"])
async def test_orders_follow_their_flow_and_their_units_with_them(
    machine: type[FlowMachine], dsn: str, desk: CampaignDesk, settings_: Settings, auditor: Auditor,
    store: SharedConnection, ledger: Pool,
) -> None:  # fmt: skip
    sale = await Sale.open(desk, {"red": 5_000}, limits={"buyer": 1}, order_type=machine.flow.order_type)

    def run() -> None:
        with asyncio.Runner() as runner:
            pool = runner.run(open_pool(dsn, "machine", 10.0, 2))
            world = runner.run(World.make(pool, settings_, sale))
            machine.world = world
            machine.seen.clear()
            machine.play_every_move()
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=80, stateful_step_count=12, deadline=None, derandomize=True, database=None,
                    suppress_health_check=list(HealthCheck), phases=[Phase.generate],
                ),
            )  # fmt: skip
            runner.run(world.close())
            pool.terminate()

    await asyncio.to_thread(run)
    # What no history ever did proves nothing.
    wanted = {(s.state, s.action) for s in machine.flow.steps} - machine.never
    assert wanted <= set(machine.seen), sorted(wanted - set(machine.seen))
    assert machine.seen["", "lapse"] or machine is VirtualMachine  # there it is asked for at the very end only
    await invariants(auditor, store, ledger, sale)


@pytest.fixture
def settings_(settings: Settings) -> Settings:
    """By a name that Hypothesis has not taken."""
    return settings
