"""What the course of a campaign looks like after its rush: a live line, and a panel on the ends that were reached."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from core.flows.table import Flow
from loadtest.display import WIDTH_BESIDE, WIDTH_MAX
from ops.course import Course, Standing, Unsent

PLAIN_EVERY_S = 2.0  # between two lines where there is no terminal

# Of the messages, those whose delivery is a stage of the order: after which state it stands, its words.
DELIVERIES: tuple[tuple[str, str, str], ...] = (
    ("payment", "", "asked to pay"),
    ("settle", "paid", "hold settled"),
    ("release", "expired", "hold released"),
)
COLOURS = {"completed": "green", "cancelled": "yellow", "expired": "yellow", "refunded": "magenta"}


class CourseDisplay:
    """Shows a standing while it is entered: in a terminal one live line, elsewhere a plain line every two seconds."""

    def __init__(self, console: Console, flow: Flow) -> None:
        self._console = console
        self._flow = flow
        self._live: Live | None = None
        self._plain_at_s = 0.0

    def __enter__(self) -> "CourseDisplay":
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, standing: Standing, seconds: float) -> None:
        """Show `standing`, `seconds` after the rush."""
        if self._live is not None:
            # Below it an empty line: a `^C` that a terminal writes there moves nothing.
            lines = (self.line(standing, seconds), _waits(standing))
            self._live.update(Group(*(Text(line, no_wrap=True) for line in lines), Text()), refresh=True)
        elif seconds >= self._plain_at_s:
            self._plain_at_s = seconds + PLAIN_EVERY_S
            line = self.line(standing, seconds) + _waits(standing)
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def line(self, standing: Standing, seconds: float) -> str:
        """The standing in one line."""
        return (
            f"{seconds:6.1f} s  orders open {standing.open(self._flow):,}  ended {standing.ended(self._flow):,}"
            f"  units left {standing.left:,}  held {standing.held:,}"
        )


def _waits(standing: Standing) -> str:
    return f"  waits for {standing.waits}" if standing.waits else ""


def still_open(standing: Standing, unsent: Unsent, flow: Flow) -> str:
    """What keeps a campaign from its end, in words."""
    on_the_way = standing.accepted - sum(standing.states.values())
    counts = {state: n for state, n in sorted(standing.states.items()) if state not in flow.ends}
    found = [f"{n:,} orders {state}" for state, n in counts.items()]
    found += [f"{on_the_way:,} orders on their way to the ledger"] if on_the_way else []
    for n, words in (
        (standing.left, "units left"),
        (standing.held, "units held"),
        (unsent.waiting, "messages in the outbox"),
        (unsent.dead, "messages dead"),
    ):
        found += [f"{n:,} {words}"] if n else []
    return ", ".join(found) or "something is still moving"


def ends_table(flow: Flow, orders: Mapping[str, int], units: Mapping[str, int]) -> Table:
    """How many orders and units came to each end; states that are no end only if an order is there."""
    table = Table(title="Orders", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in ("count", "share", "units"):
        table.add_column(name, justify="right", style="" if name == "count" else "dim", no_wrap=True)
    total = sum(orders.values())
    table.add_row("all", Text(f"{total:,}", "bold"), "", f"{sum(units.values()):,}")
    for state in (*flow.ends, *(s for s in flow.states if s not in flow.ends and orders.get(s))):
        n = orders.get(state, 0)
        colour = COLOURS.get(state, "red") if n else "dim"
        table.add_row(_words(state), Text(f"{n:,}", colour), f"{n / max(total, 1):.1%}", f"{units.get(state, 0):,}")
    return table


def times_table(flow: Flow, moves: list[Any], deliveries: list[Any]) -> Table:
    """Time from the 202 to each stage that an order reached, in the order of the flow."""
    table = Table(title="Time from the 202", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in ("count", "p50", "p99"):
        table.add_column(name, justify="right", style="dim" if name == "count" else "", no_wrap=True)
    delivered = {row["topic"]: row for row in deliveries}

    def messages_after(state: str) -> None:
        for topic, after, words in DELIVERIES:
            if after == state and (row := delivered.get(topic)):
                table.add_row(words, f"{row['messages']:,}", *map(seconds_text, row["after_s"]))

    messages_after("")
    reached = {row["state"]: row for row in moves}
    for state in stages(flow):
        if row := reached.get(state):
            table.add_row(_words(state), f"{row['moves']:,}", *map(seconds_text, row["after_s"]))
            if state == "expired":
                table.add_row("  after pay_by", "", *map(seconds_text, row["late_s"]), style="dim")
        messages_after(state)
    return table


def stages(flow: Flow) -> list[str]:
    """The states after the first as a reader looks for them: the way to the wanted end, then the ways back."""
    ahead = flow.leading_to(flow.ends[:1])
    later = [s for s in flow.states if s != flow.first]
    back = [s for s in later if s not in ahead]
    # An end has its place behind the states that lead to it.
    return [*(s for s in later if s in ahead and s not in flow.ends), flow.ends[0], *back]


def seconds_text(seconds: float) -> str:
    """`340 ms`, `4.21 s`, `132 s`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:,.0f} ms"
    return f"{seconds:,.2f} s" if seconds < 99.995 else f"{seconds:,.0f} s"


def print_course(
    course: Course, accepted: int, units: Mapping[str, int], stock: int, times: tuple[list[Any], list[Any]],
    standing: Standing, unsent: Unsent, console: Console,
) -> None:  # fmt: skip
    """Print the panel.

    Args:
        accepted: orders of the rush itself.
        units: of all orders, by their state.
        stock: units that the sale began with; what was ordered beyond them was sold again.
    """
    flow = course.flow
    again = max(0, sum(units.values()) - stock)
    words = Table.grid(padding=(0, 2))
    words.add_column()
    words.add_column(justify="right", no_wrap=True)
    words.add_row("accepted in the rush", f"{accepted:,} orders")
    words.add_row(f"accepted later, {len(course.crowds):,} crowds", f"{course.accepted_later:,} orders")
    if flow.order_type != "reserve_at_payment":  # there more may be ordered than are ever taken
        words.add_row("came back and were sold again", f"{again:,} units")
    words.add_row("from the rush to the last end", seconds_text(course.seconds))
    ends, stages_reached = ends_table(flow, standing.states, units), times_table(flow, *times)
    body: list[RenderableType]
    if console.width < WIDTH_BESIDE:
        body = [ends, Text(), stages_reached, Text(), words]
    else:
        sides = Table.grid(padding=(0, 4))
        sides.add_row(ends, stages_reached)
        body = [sides, Text(), words]
    if not course.over:
        body += [Text(), Text(f"still open: {still_open(standing, unsent, flow)}", "bold red")]
    for report in course.crowds:
        body += [Text(example, "red") for example in report.examples[:1]]
    good = "[green]every order at its end[/]" if course.over else "[bold red]not at its end[/]"
    console.print(
        Panel(
            Group(*body),
            title=Text("From the rush to the end", "bold"),
            subtitle=good,
            width=min(console.width, WIDTH_MAX),
            padding=(1, 2),
        ),
        highlight=False,
    )


def _words(state: str) -> str:
    return state.replace("_", " ")
