"""What a rush looks like: a live view in a terminal, a line a second elsewhere, and the final report."""

from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadtest.outcomes import Outcome
from loadtest.report import Percentiles, RushReport, late
from loadtest.rush import Progress

WIDTH_MAX = 100
WIDTH_BESIDE = 80  # from here on the tables of the report stand side by side
BAR_WIDTH = 36
RATE_SHOWN_MAX = 9_999_999
PLAIN_EVERY_S = 1.0
EXAMPLES_SHOWN = 5
LATE_MS_SHOWN = 50.0  # above it the generator itself was short of CPU, and the figures blame the server for it

# outcome, its words, its colour; those marked True are shown when 0 too
_ROWS: tuple[tuple[Outcome, str, str, bool], ...] = (
    (Outcome.ACCEPTED, "accepted", "green", True),
    (Outcome.REPLAYED, "replayed", "cyan", True),
    (Outcome.SOLD_OUT, "sold out", "blue", True),
    (Outcome.OVER_LIMIT, "over limit", "magenta", True),
    (Outcome.INVALID, "invalid", "bright_black", True),
    (Outcome.UNKNOWN_SKU, "unknown SKU", "bright_black", False),
    (Outcome.NOT_OPEN, "not open", "yellow", False),
    (Outcome.CLOSED, "closed", "yellow", False),
    (Outcome.PAUSED, "paused", "yellow", False),
    (Outcome.LIMITED, "limited (429)", "yellow", False),
    (Outcome.KEY_REUSED, "key reused", "red", False),
    (Outcome.UNAUTHORIZED, "refused (401)", "red", False),
    (Outcome.FORBIDDEN, "refused (403)", "red", False),
    (Outcome.NOT_FOUND, "not found (404)", "red", False),
    (Outcome.TOO_LARGE, "too large (413)", "red", False),
    (Outcome.UNAVAILABLE, "given up (503)", "red", False),
    (Outcome.UNKNOWN, "no answer", "red", False),
    (Outcome.UNSENT, "never sent", "red", False),
    (Outcome.UNEXPECTED, "unexpected", "bold red", False),
)


_STEADY = frozenset(words for _, words, _, always in _ROWS if always)


def _shown(outcomes: Mapping[str, int]) -> list[tuple[str, str, int]]:
    return [
        (words, colour, outcomes.get(outcome, 0))
        for outcome, words, colour, always in _ROWS
        if always or outcomes.get(outcome, 0)
    ]


class RushDisplay:
    """Shows progress while it is entered; `update` is the `on_progress` of a rush.

    In a terminal it is one live panel; elsewhere (a pipe, CI) a plain line about once a second.
    """

    def __init__(self, console: Console, title: str) -> None:
        self.console = console
        self.title = title
        self._live: Live | None = None
        self._rate = 0.0
        self._last: Progress | None = None
        self._plain_at_s = 0.0

    def __enter__(self) -> "RushDisplay":
        if self.console.is_terminal:
            # Refreshed by `update` alone: a refresh thread would take turns from the event loop.
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        else:
            self.console.print(self.title, highlight=False, markup=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, progress: Progress) -> None:
        """Show `progress`."""
        last = self._last
        if last is None or progress.elapsed_s > last.elapsed_s:
            before_s, before = (last.elapsed_s, last.answered) if last else (0.0, 0)
            now = (progress.answered - before) / max(progress.elapsed_s - before_s, 1e-3)
            self._rate = now if last is None else 0.6 * self._rate + 0.4 * now  # steadier to read
        self._last = progress
        if self._live is not None:
            self._live.update(self._frame(progress), refresh=True)
        elif progress.elapsed_s >= self._plain_at_s or progress.answered == progress.requests:
            self._plain_at_s = progress.elapsed_s + PLAIN_EVERY_S
            self.console.print(self._line(progress), highlight=False, markup=False, soft_wrap=True)

    def _line(self, progress: Progress) -> str:
        counts = ", ".join(f"{words} {n:,}" for words, _, n in _shown(progress.outcomes) if n)
        return (
            f"{progress.elapsed_s:6.1f} s  offered {progress.offered:,}  answered {progress.answered:,}"
            f" of {progress.requests:,}  {counts}"
        ).rstrip()

    def _frame(self, progress: Progress) -> RenderableType:
        """The panel, of the same size from the first to the last: all widths follow from the total and the console."""
        total, width = progress.requests, min(self.console.width, WIDTH_MAX)
        inner = width - 6  # border and padding
        of = f"{total:,}"
        bars = Table.grid(padding=(0, 2))
        bars.add_column(style="bold", no_wrap=True)
        bars.add_column()
        bars.add_column(justify="right", no_wrap=True)
        for words, n, colour in (
            ("offered", progress.offered, "bright_black"),
            ("answered", progress.answered, "green"),
        ):
            bar_width = max(4, min(BAR_WIDTH, inner - len("answered") - 2 * len(of) - len(" / ") - 4))
            bar = ProgressBar(total, n, width=bar_width, complete_style=colour, finished_style=colour)
            bars.add_row(words, bar, f"{n:{len(of)},} / {of}")
        also = [f"{words} {n:,}" for words, _, n in _shown(progress.outcomes) if words not in _STEADY]
        panel = Panel(
            Group(
                bars,
                Text(),
                self._numbers(progress, inner),
                Text(", ".join(also), "yellow", no_wrap=True, overflow="ellipsis"),
            ),
            title=Text(self.title, "bold"),
            subtitle=f"{progress.elapsed_s:.1f} s",
            width=width,
            padding=(1, 2),
        )
        # The cursor rests on the empty line below: the `^C` that a terminal writes there moves no line of the frame.
        return Group(panel, Text())

    def _numbers(self, progress: Progress, inner: int) -> Table:
        cells = [
            ("answers/s", min(self._rate, RATE_SHOWN_MAX), "bold"),
            ("in flight", progress.in_flight, "bold"),
            ("waiting", progress.waiting, "bold"),
            *((words, n, colour) for words, colour, n in _shown(progress.outcomes) if words in _STEADY),
            ("retried", progress.retried, "yellow" if progress.retried else ""),
            ("late, ms", progress.late_ms, "yellow" if progress.late_ms >= LATE_MS_SHOWN else "dim"),
        ]
        digits = max(len(f"{progress.requests:,}"), len(f"{RATE_SHOWN_MAX:,}"))
        width = max(len(words) for words, _, _ in cells) + 1 + digits
        columns = max(1, min(3, (inner + 3) // (width + 3)))
        grid = Table.grid(padding=(0, 3))
        for _ in range(columns):
            grid.add_column(width=width, no_wrap=True)
        texts = [Text.assemble((words, "dim"), (f"{n:{width - len(words)},.0f}", colour)) for words, n, colour in cells]
        for first in range(0, len(texts), columns):
            grid.add_row(*texts[first : first + columns])
        return grid


def _outcome_table(report: RushReport) -> Table:
    table = Table(title="Answers", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("share", justify="right", style="dim", no_wrap=True)

    def row(words: str, n: int, colour: str = "") -> None:
        table.add_row(words, Text(f"{n:,}", colour if n else "dim"), f"{n / max(report.requests, 1):.1%}")

    table.add_row("sent", Text(f"{report.requests:,}", "bold"), "")
    for words, colour, n in _shown(report.outcomes):
        row(words, n, colour)
    row("faults", report.faults, "red")
    return table


def _latency_table(report: RushReport) -> Table:
    table = Table(title="Latency, ms", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in ("p50", "p95", "p99", "max"):
        table.add_column(name, justify="right", no_wrap=True)

    def row(words: str, found: Percentiles, style: str = "") -> None:
        values = (found.p50_ms, found.p95_ms, found.p99_ms, found.max_ms)
        cells = [f"{v:,.1f}" if v < 100 else f"{v:,.0f}" for v in values] if found.n else ["–"] * 4
        table.add_row(words, *cells, style=style)

    row("from due time", report.latency, "bold")
    row("  accepted", report.latency_accepted, "green")
    row("service only", report.service, "dim")
    return table


def _pairs() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    return table


def _rates(report: RushReport) -> Table:
    table = _pairs()
    # Two spans: a few late 202s would say more of their buyers than of the gateway, so these end with 95 % of them.
    table.add_row("accepted/s, first 95 %", Text(f"{report.accepted_per_s:,.0f}", "bold green"))
    table.add_row("answered/s, to the last", f"{report.requests_per_s:,.0f}")
    table.add_row("first to last", f"{report.elapsed_s:,.2f} s")
    if report.orders != report.count(Outcome.ACCEPTED):
        # The 202 was lost on its way, and the repeat was answered as the replay it is.
        table.add_row("orders, with lost answers", f"{report.orders:,}")
    if report.retried:
        table.add_row("sent, with repeats", f"{report.sent:,}")
        table.add_row("retried after a fault", Text(f"{report.retried:,}", "yellow"))
    if report.rate:
        table.add_row("due/s", f"{report.rate:,g}")
        table.add_row("generator late, p99", f"{report.lag.p99_ms:,.1f} ms")
    if report.late_ms >= LATE_MS_SHOWN:
        table.add_row("generator late, at most", Text(f"{report.late_ms:,.0f} ms", "yellow"))
    return table


def print_report(report: RushReport, console: Console, extra_rows: Sequence[tuple[str, str]] = ()) -> None:
    """Print the final tables; `extra_rows` are (words, value) pairs of the caller, at the end."""
    body: list[RenderableType] = []
    times = Group(_latency_table(report), Text(), _rates(report))
    if console.width < WIDTH_BESIDE:
        body += [_outcome_table(report), Text(), times]
    else:
        sides = Table.grid(padding=(0, 4))
        sides.add_row(_outcome_table(report), times)
        body.append(sides)
    if extra_rows:
        extra = _pairs()
        for words, value in extra_rows:
            extra.add_row(words, value)
        body += [Text(), extra]
    if report.inconsistent:
        body.append(Text())
        for name, n in sorted(report.inconsistent.items()):
            body.append(Text(f"inconsistent: {name.replace('_', ' ')}  {n:,}", "bold red"))
    if warning := late(report):
        body += [Text(), Text(warning, "yellow")]
    body += [Padding(Text(example, "red"), (0, 0, 0, 2)) for example in report.examples[:EXAMPLES_SHOWN]]
    good = "[green]consistent[/]" if report.ok else "[bold red]not as it should be[/]"
    crowd = f"{report.buyers:,} buyers in {report.spread_s:g} s"
    title = f"Rush: {f'{report.rate:,g} requests/s' if report.rate else crowd}, campaign {report.campaign}"
    console.print(
        Panel(
            Group(*body),
            title=Text(title, "bold"),
            subtitle=good,
            width=min(console.width, WIDTH_MAX),
            padding=(1, 2),
        ),
        highlight=False,
    )
