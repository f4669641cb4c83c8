"""A story of an order on a terminal: readable at 80 columns, with all columns of the trace from 132 on."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from core.desk.orders import TraceStep
from core.model import Refund, RefundShare, ShipTo
from ops.order_story import Story

WIDE = 132  # columns from which every part of a step has one of its own, and no payment number is wrapped
NEVER_WRAPPED = ("when (UTC)", "asked (UTC)", "came", ">waited", ">worked", ">amount")
REFUND_STATES = ("requested", "approved", "rejected", "done")
TIMED = {"shipped": "received by", "received": "completes"}  # state -> what its timer says


def print_story(story: Story, console: Console) -> None:
    """All of it; what there is none of is left out."""
    day = story.order.accepted_at.astimezone(UTC).date()
    times = [s.at for s in story.steps] + [r.done_at for r in story.refunds if r.done_at]
    clock = _Clock(all(at.astimezone(UTC).date() == day for at in times))
    console.print(plain(f"Order {story.order.order_id}", "bold"))
    console.print(_head(story))
    console.print(_section("Lines", _lines(story)))
    if story.steps:
        steps = _steps_wide(story.steps, clock) if console.width >= WIDE else _steps(story.steps, clock)
        console.print(_section("Steps", steps))
    rows: list[Sequence[str]] = [
        (clock.at(p.at), p.payment_no, p.status, _money(p.amount, p.currency)) for p in story.payments
    ]
    _table(console, "Payments", ("came", "number", "status", ">amount"), rows)
    if story.refunds:
        console.print(_section("Refunds", _refunds(story.refunds, clock)))
    now = datetime.now(UTC)
    rows = [(w.topic, str(w.version), how_it_waits(w.due_at, w.attempts, w.error, now)) for w in story.waiting]
    _table(console, "Waiting in the outbox", ("topic", ">version", "how it stands"), rows)
    rows = [(d.topic, str(d.version), str(d.attempts), clock.at(d.dead_at), d.reason) for d in story.dead]
    _table(console, "Dead messages", ("topic", ">version", ">attempts", "since", "why"), rows)
    rows = [(clock.at(r.at), r.what, r.why) for r in story.repairs]
    _table(console, "Repairs of its hold", ("when", "what", "why"), rows)


def plain(text: str, style: str = "") -> Text:
    """Text of others as it is: no markup, and nothing that moves a cursor."""
    return Text("".join(c if c.isprintable() else "·" for c in text), style)


def duration(ms: float) -> str:
    """A duration for people, rounded: 12 ms, 1.2 s, 3 m 20 s, 2 h 5 m, 3 d 4 h."""
    if ms < 1_000:
        return f"{ms:.0f} ms"
    if ms < 59_950:
        return f"{ms / 1_000:.1f} s"
    seconds = round(ms / 1_000)
    if seconds < 3_600:
        return f"{seconds // 60} m {seconds % 60} s"
    if seconds < 48 * 3_600:
        return f"{seconds // 3_600} h {seconds % 3_600 // 60} m"
    return f"{seconds // 86_400} d {seconds % 86_400 // 3_600} h"


def many(count: int, word: str) -> str:
    """1 message, 2 messages, 1,000 messages."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def how_it_waits(due_at: datetime, attempts: int, error: str | None, now: datetime) -> str:
    """How a message in the outbox stands, as far as the ledger knows: what a relay thinks of it is not there."""
    late_ms = (now - due_at).total_seconds() * 1000
    if late_ms >= 0:
        overdue = "due now" if late_ms < 1_000 else f"{duration(late_ms)} overdue"
        stands = f"waits for the relay, {overdue}, {many(attempts, 'attempt') if attempts else 'no attempt yet'}"
    elif error:
        stands = f"{many(attempts, 'attempt')}, next within {duration(-late_ms)}"
    else:
        stands = f"with a relay, or put off by its breaker; due again in {duration(-late_ms)}"
    return f"{stands}: {error}" if error else stands


class _Clock:
    """Writes times, in UTC; the day only where a story is of more than one."""

    def __init__(self, one_day: bool) -> None:
        self._format = "%H:%M:%S.%f" if one_day else "%m-%d %H:%M:%S.%f"

    def at(self, when: datetime) -> str:
        return when.astimezone(UTC).strftime(self._format)[:-3]


def _head(story: Story) -> Table:
    order = story.order
    head = Table.grid(padding=(0, 2))
    head.add_column(style="dim", no_wrap=True)
    head.add_column(overflow="fold")

    def row(label: str, text: str, style: str = "") -> None:
        head.add_row(f"  {label}", plain(text, style))

    row("state", f"{order.state}: {story.name}", "green" if story.ended else "yellow")
    if story.note:
        row("", story.note, "yellow")
    row("type", story.order_type)
    row("version", str(order.version))
    row("campaign", f"{order.campaign}, channel {order.channel}")
    row("buyer", ", ".join(filter(None, (order.buyer_id, story.client_ip, story.device_id))))
    if story.request_key:
        row("key", f"{story.request_key} (number {story.seq} of epoch {story.epoch})")
    off = f", {order.discount:,} off" if order.discount else ""
    if story.trace_id:
        row("trace", story.trace_id)
    row("amount", f"{_money(order.amount, order.currency)} in minor units{off}")
    if story.payments or story.refunds:
        for n, words in enumerate(_balance(story)):
            row("" if n else "money", words)
    row("accepted", order.accepted_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC")
    row("pay by", order.pay_by.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"))
    if story.timer_at is not None and order.state in TIMED:
        row(TIMED[order.state], story.timer_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"))
    if order.ship_to is not None:
        row("ship to", _address(order.ship_to))
    row("hold", story.hold)
    alike: dict[tuple[str, ...], list[str]] = {}
    for actor, actions in story.allowed.items():
        alike.setdefault(tuple(actions), []).append(actor)
    for n, (same, who) in enumerate(alike.items()):
        row("" if n else "allowed", f"{', '.join(who)}: {', '.join(same)}")
    return head


def _address(to: ShipTo) -> str:
    return ", ".join(filter(None, (to.name, to.phone, to.address, to.postcode, to.country)))


def _money(amount: int, currency: str) -> str:
    return f"{amount:,} {currency}"


def _balance(story: Story) -> list[str]:
    """Where the buyer's money is, by the rule of order_totals.sql: what is approved is not left any more."""
    refunds = {state: sum(r.amount for r in story.refunds if r.state == state) for state in REFUND_STATES}
    paid = sum(p.amount for p in story.payments if p.status == "paid")
    words = f"paid {paid:,}, refunded {refunds['done']:,}, on its way {refunds['approved']:,}, "
    words += f"left {paid - refunds['done'] - refunds['approved']:,}"
    return [words, f"{refunds['requested']:,} of that under review"] if refunds["requested"] else [words]


def _shared(lines: Iterable[RefundShare]) -> str:
    return ", ".join(f"{s.quantity:,} × {s.sku}" if s.quantity else f"{s.amount:,} for {s.sku}" for s in lines)


def _lines(story: Story) -> Table:
    rows = [(i.sku, f"{i.quantity:,}", f"{i.price:,}", f"{i.quantity * i.price:,}") for i in story.order.items]
    return _bare(("SKU", ">units", ">price", ">costs"), rows)


def _refunds(refunds: Sequence[Refund], clock: _Clock) -> Table:
    """What was asked and what became of it, and under it of what and why."""
    rows: list[Sequence[RenderableType]] = []
    for r in refunds:
        stands = f"{r.state} {clock.at(r.done_at)}" if r.done_at else r.state
        of = ": ".join(filter(None, (_shared(r.lines or []), r.reason)))
        rows.append((clock.at(r.at), r.refund_no, _money(r.amount, r.currency), _under(plain(stands), of)))
    return _bare(("asked (UTC)", "number", ">amount", "state"), rows)


def _steps(steps: Sequence[TraceStep], clock: _Clock) -> Table:
    """What happened, and under a move by whom and why."""
    rows: list[Sequence[RenderableType]] = []
    for step in steps:
        what, by = _what(step) + plain(f"  {_done(step)}", "dim"), ""
        if step.kind == "move":
            what = _what(step) + plain(f"  {_way(step)}")
            by = ", ".join(filter(None, (f"by {step.actor}", step.reason)))
        rows.append((clock.at(step.at), f"+{duration(step.waited_ms)}", _under(what, by)))
    return _bare(("when (UTC)", ">waited", "what"), rows)


def _under(above: Text, below: str) -> RenderableType:
    return Group(above, plain(below, "dim")) if below else above


def _steps_wide(steps: Sequence[TraceStep], clock: _Clock) -> Table:
    rows: list[Sequence[RenderableType]] = []
    for s in steps:
        worked, attempts = (duration(s.worked_ms), str(s.attempts)) if s.kind != "move" else ("", "")
        way, style = (_way(s), "") if s.kind == "move" else ("delivered", "dim")
        rows.append(
            (clock.at(s.at), f"+{duration(s.waited_ms)}", _what(s), plain(way, style), s.actor, s.reason, worked,
             attempts)
        )  # fmt: skip
    return _bare(("when (UTC)", ">waited", "what", "from → to", "by", "reason", ">worked", ">attempts"), rows)


def _what(step: TraceStep) -> Text:
    return plain(step.what, "bold") if step.kind == "move" else plain(f"· {step.what}", "dim")


def _way(step: TraceStep) -> str:
    if step.from_state == step.to_state:
        return f"stays {step.to_state}"
    return f"{step.from_state or ''} → {step.to_state}".strip()


def _done(step: TraceStep) -> str:
    attempts = f", attempt {step.attempts}" if step.attempts > 1 else ""
    return f"delivered in {duration(step.worked_ms)}{attempts}" + (f": {step.reason}" if step.reason else "")


def _section(title: str, content: RenderableType) -> RenderableType:
    return Group(Text(title, "bold"), Padding(content, (0, 0, 0, 2)))


def _table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if rows:
        console.print(_section(title, _bare(columns, rows)))


def _bare(columns: Sequence[str], rows: Iterable[Sequence[RenderableType]]) -> Table:
    """A table without lines; `>` before a heading: numbers, to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in columns:
        table.add_column(
            name.removeprefix(">"), justify="right" if name.startswith(">") else "left", overflow="fold",
            no_wrap=name in NEVER_WRAPPED,
        )  # fmt: skip
    for row in rows:
        table.add_row(*(plain(cell) if isinstance(cell, str) else cell for cell in row))
    return table
