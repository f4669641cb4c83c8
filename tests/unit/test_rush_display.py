"""The live panel: one size from the first frame to the last, and nothing of it is left after Ctrl-C."""

import io
import re

import pytest
from rich.console import Console

from loadtest.display import RushDisplay, print_report
from loadtest.rush import Progress
from tests.unit.test_rush_command import report_of

WIDTHS = (50, 60, 79, 80, 100, 200)


def progress(elapsed_s: float, done: int, total: int = 27_102, **outcomes: int) -> Progress:
    return Progress(elapsed_s, total, total, done, 256, 7_000, done // 100, outcomes)


GROWING = [
    progress(0.0, 0),
    progress(0.1, 900, accepted=900),
    progress(2.0, 20_000, accepted=5_000, replayed=400, sold_out=14_000, over_limit=200, not_open=400),
    progress(9.0, 27_102, accepted=5_000, sold_out=21_000, unknown=1_000, unavailable=40, unexpected=62),
]


class Terminal:
    """As much of a terminal as the live panel uses: lines, where the cursor is, wrapping at the right edge."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.lines: list[list[str]] = [[]]
        self.row = self.column = 0

    def write(self, text: str) -> None:
        for code, count, letter in re.findall(r"(\x1b\[\??([\d;]*)([A-Za-z])|[^\x1b])", text):
            if letter == "A":
                self.row -= int(count or 1)
            elif letter == "K":
                self.lines[self.row] = []
            elif code == "\r":
                self.column = 0
            elif code == "\n":
                self._down()
            elif not letter:
                self._put(code)

    def _down(self) -> None:
        self.row, self.column = self.row + 1, 0
        if self.row == len(self.lines):
            self.lines.append([])

    def _put(self, letter: str) -> None:
        if self.column == self.width:
            self._down()
        line = self.lines[self.row]
        line += " " * (self.column + 1 - len(line))
        line[self.column] = letter
        self.column += 1

    @property
    def text(self) -> str:
        return "\n".join("".join(line).rstrip() for line in self.lines)


@pytest.mark.parametrize("total", [100, 27_102, 1_355_100])
@pytest.mark.parametrize("width", WIDTHS)
def test_panel_keeps_its_size_and_its_words_while_numbers_grow(width: int, total: int) -> None:
    sizes, numbers = set(), set()
    for at in GROWING:
        console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
        display = RushDisplay(console, "Rush on demo")
        display._rate = at.answered * 50.0
        frame = console.render_lines(display._frame(progress(at.elapsed_s, at.answered, total, **at.outcomes)))
        lines = ["".join(segment.text for segment in line) for line in frame]
        sizes.add((len(lines), max(map(len, lines))))
        numbers.add(tuple(re.sub(r"[\d,]", " ", line) for line in lines[5:-4]))
    assert len(sizes) == 1
    assert len(numbers) == 1  # the same words at the same places


@pytest.mark.parametrize("width", WIDTHS)
def test_ctrl_c_in_mid_rush_leaves_nothing_of_the_panel(width: int) -> None:
    out = io.StringIO()
    terminal = Terminal(width)
    display = RushDisplay(Console(file=out, width=width, force_terminal=True, color_system=None), "Rush on demo")

    def flush() -> None:
        terminal.write(out.getvalue())
        out.seek(0)
        out.truncate()

    def interrupted() -> None:
        with display:
            for at in GROWING[:3]:
                display.update(at)
                flush()
            assert terminal.text.count("╭") == 1
            terminal.write("^C")  # what the terminal itself writes at the cursor
            display.update(GROWING[3])
            flush()
            assert terminal.text.count("╭") == 1
            terminal.write("^C")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    flush()
    assert terminal.text.strip() == ""


@pytest.mark.parametrize("width", [50, 60, 79])
def test_report_is_whole_on_a_narrow_console(width: int) -> None:
    out = io.StringIO()
    print_report(report_of(), Console(file=out, width=width))
    text = out.getvalue()
    assert max(len(line) for line in text.splitlines()) == width
    assert "…" not in text
    for words in ("27,102", "12,346", "from due time", "over limit", "first to last"):
        assert words in text
    assert text.index("Answers") < text.index("faults") < text.index("Latency, ms")
