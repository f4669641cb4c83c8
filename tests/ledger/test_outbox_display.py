"""The outbox and the dead as an operator sees them: in lists of any width, and in the doctor's words."""

import io
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from asyncpg.pgproto.pgproto import UUID
from rich.console import Console

from core.desk.campaigns import CampaignDesk
from core.ids import text_of
from core.ledger.pool import Pool
from core.settings import Settings
from lua.connection import SharedConnection
from ops.desk import Place
from ops.doctor_ledger import ledger_checks
from ops.order_display import many
from ops.outbox_display import print_rows, row_of
from tests.ledger.relay_support import ids
from tests.ledger.support import Sale, drain, make_worker
from tests.ledger.test_relay_commands import Captured, die, sale, typed
from workers.writer import LedgerWriter

__all__ = ["sale"]  # the fixture

NOBODY = UUID(bytes(16))
WHY = "answered 503: " + "over and over again, " * 20 + "amen"


async def test_replay_says_what_a_relay_has(sale: Sale, settings: Settings, ledger: Pool, capsys: Captured) -> None:
    one = (await ids(ledger))[0]
    text = "UPDATE outbox SET due_at = now() + interval '60 s', attempts = 1 WHERE order_id = $1"
    await ledger.execute(text, UUID(one))
    assert await typed(settings, "outbox", "replay", "--all") == 0
    assert capsys.readouterr().out == "0 messages made due now, 2 due already, 1 with a relay\n"
    assert await typed(settings, "outbox", "list", "--order", text_of(one)) == 0
    assert "with a relay, or put off by its breaker; due again in " in capsys.readouterr().out


async def test_lists_in_a_pipe_are_one_whole_line_each(
    sale: Sale, settings: Settings, ledger: Pool, capsys: Captured
) -> None:
    orders = [text_of(one) for one in await ids(ledger)]
    await ledger.execute("UPDATE outbox SET due_at = now() - interval '9 m', attempts = 4, error = $1", WHY)
    for part, stands in (("outbox", r"waits for the relay, 9 m \d s overdue, 4 attempts: "),
                         ("dead-letters", r"dead since 20\d\d-.{14}, 12 attempts: ")):  # fmt: skip
        if part == "dead-letters":
            await die(ledger)
            await ledger.execute("UPDATE dead_messages SET reason = $1", WHY)
        assert await typed(settings, part, "list") == 0
        lines = capsys.readouterr().out.splitlines()
        assert sorted(line[:36] for line in lines) == sorted(orders)
        assert all(re.fullmatch(rf".{{36}}  payment        1  .{{19}}  {stands}{WHY}", line) for line in lines)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_lists_on_a_terminal_fit_and_never_cut_an_order_id(width: int) -> None:
    now = datetime.now(UTC)
    found = {"order_id": NOBODY, "topic": "unprovision", "version": 100, "at": now, "dead_at": now, "attempts": 12}
    row, out = row_of(found | {"reason": WHY + "\x1b[2J"}, now), io.StringIO()
    print_rows([row, row], Console(file=out, width=width, force_terminal=True, color_system=None))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert sum(line.startswith(str(NOBODY)) for line in lines) == 2
    assert "amen" in out.getvalue()
    assert "\x1b[2J" not in out.getvalue()


@pytest.mark.parametrize(
    ("due_s", "attempts", "error", "stands"),
    [
        (-90.5, 0, None, "waits for the relay, 1 m 30 s overdue, no attempt yet"),
        (-0.5, 1, "answered 500", "waits for the relay, due now, 1 attempt: answered 500"),
        (30.0, 3, "answered 500", "3 attempts, next within 30.0 s: answered 500"),
        (30.0, 0, None, "with a relay, or put off by its breaker; due again in 30.0 s"),
    ],
)
def test_waiting_message_stands_as_far_as_the_ledger_knows(
    due_s: float, attempts: int, error: str | None, stands: str
) -> None:
    now = datetime.now(UTC)
    found = {"order_id": NOBODY, "topic": "settle", "version": 2, "at": now, "attempts": attempts, "error": error}
    assert row_of(found | {"due_at": now + timedelta(seconds=due_s)}, now).stands == stands


def test_one_is_not_many() -> None:
    assert [many(n, "message") for n in (0, 1, 1_000)] == ["0 messages", "1 message", "1,000 messages"]


async def looked(settings: Settings, **values: Any) -> list[tuple[str, str, str]]:
    """What the doctor says of the outbox."""
    names = ("outbox", "partners", "dead letters")
    checks = await ledger_checks(Place(settings.with_values(**values)))
    return [(c.verdict, c.name, c.words) for c in checks if c.name in names or c.name.startswith("to ")]


async def test_doctor_sees_what_is_late_dead_or_has_nowhere_to_go(sale: Sale, settings: Settings, ledger: Pool) -> None:
    url = "http://127.0.0.1:9"
    sound = ("ok", "outbox", "no message is late, none is dead, no order is set aside")
    assert await looked(settings, partners_url=url) == [sound]
    [found] = await looked(settings, partners_url="")
    assert found[:2] == ("warning", "partners")
    assert found[2].startswith("RUSHGATE_PARTNERS_URL is empty: ")
    assert found[2].endswith("; 3 messages for them in the outbox")
    one, two, _ = (UUID(order) for order in await ids(ledger))
    # One failed and waits for its next attempt; another, which is older, was never tried.
    text = "UPDATE outbox SET at = now() - $2::interval, due_at = now() + $3::interval, attempts = $4, error = $5 "
    text += "WHERE order_id = $1"
    await ledger.execute(text, one, timedelta(seconds=20), timedelta(seconds=60), 4, "answered 500: \x1b[2J")
    await ledger.execute(text, two, timedelta(seconds=30), timedelta(seconds=-30), 0, None)
    [found] = await looked(settings, partners_url=url)
    assert found[:2] == ("warning", "to payment")
    late = (
        r"2 messages late; the oldest \(payment\) came 30\.\d s ago, no attempt yet, overdue by 30\.\d s; last error: "
    )
    assert re.fullmatch(late + r"answered 500: ·\[2J", found[2])
    await ledger.execute("UPDATE outbox SET topic = 'settle' WHERE order_id = $1", two)
    payment, store = await looked(settings, partners_url=url)
    assert re.match(r"1 message late; the oldest \(payment\) came 2\d\.\d s ago, 4 attempts, next within ", payment[2])
    assert store[:2] == ("warning", "to store")
    assert store[2].endswith("; does a relay work (it may be alive and frozen)?")
    await ledger.execute("UPDATE outbox SET due_at = now() - interval '61 s' WHERE order_id = $1", two)
    assert [f[:2] for f in await looked(settings)] == [("wrong", "to store"), ("warning", "partners")]
    await die(ledger)
    [found] = await looked(settings, partners_url=url)
    assert found[:2] == ("warning", "dead letters")
    assert found[2].startswith("3 messages dead: `rushgate dead-letters list` says why")


async def test_doctor_counts_dead_orders_until_they_are_given_up(
    desk: CampaignDesk, settings: Settings, store: SharedConnection, ledger: Pool
) -> None:
    opened = await Sale.open(desk, {"red": 50})
    await opened.accept(store, 1)
    await ledger.execute("ALTER TABLE orders ADD CONSTRAINT orders_none CHECK (amount < 0) NOT VALID")
    await drain(store, make_worker(settings, ledger, writer=LedgerWriter(ledger)))
    [found] = await looked(settings)
    assert found[:2] == ("warning", "dead letters")
    assert found[2].startswith("1 order dead: ")
    await typed(settings, "dead-letters", "drop", "--all")
    assert [f[0] for f in await looked(settings)] == ["ok"]
