"""Flame graphs as plain SVG: no script, a frame's share in its tooltip, small enough to keep in the repository."""

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from bench.environment import RESULTS

Stacks = Mapping[tuple[str, ...], int]  # frames from the outermost to the running one -> samples

WIDTH, ROW, TOP = 1_200, 17, 46
CHARACTER = 6.2  # pixels, about
LEAST = 0.002  # of all samples; a frame with less is dropped
MOST_BYTES = 300_000
_OFFSET = re.compile(r"\+0x[0-9a-f]+$")


class Frame(NamedTuple):
    """A box: `depth` 0 is the outermost; `first` and `samples` in samples."""

    name: str
    depth: int
    first: int
    samples: int


def folded(text: str) -> Counter[tuple[str, ...]]:
    """Stacks of lines `outer;inner;… samples`, as py-spy's raw format has them."""
    found: Counter[tuple[str, ...]] = Counter()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        if stack:
            found[tuple(stack.split(";"))] += int(count)
    return found


def from_perf(text: str) -> Counter[tuple[str, ...]]:
    """Stacks of what `perf script -F comm,ip,sym` prints: a name, its frames from the inside out, an empty line."""
    found: Counter[tuple[str, ...]] = Counter()
    for block in re.split(r"\n\s*\n", text):
        lines = block.strip("\n").splitlines()
        if len(lines) < 2:
            continue
        frames = [_OFFSET.sub("", line.split(None, 1)[1].strip()) if " " in line.strip() else "?" for line in lines[1:]]
        # A row of functions without a name (the wheel's server is stripped) is one.
        named = [f for n, f in enumerate(frames) if f != "[unknown]" or frames[n - 1 : n] != ["[unknown]"]]
        found[(lines[0].strip(), *reversed(named))] += 1
    return found


def frames(stacks: Stacks, least: float = LEAST) -> list[Frame]:
    """The boxes of all stacks, siblings by name; without those that have less than `least` of the samples."""
    total = sum(stacks.values())
    found: list[Frame] = []

    def place(group: list[tuple[tuple[str, ...], int]], depth: int, first: int) -> None:
        children: dict[str, list[tuple[tuple[str, ...], int]]] = {}
        for stack, count in group:
            if len(stack) > depth:
                children.setdefault(stack[depth], []).append((stack, count))
        for name in sorted(children):
            samples = sum(count for _, count in children[name])
            if samples >= least * total:
                found.append(Frame(name, depth, first, samples))
                place(children[name], depth + 1, first)
            first += samples

    place(list(stacks.items()), 0, 0)
    return found


def render(stacks: Stacks, title: str, words: str = "") -> str:
    """The SVG, at most MOST_BYTES: rare frames are dropped until it is.

    Raises:
        ValueError: there is no sample.
    """
    total = sum(stacks.values())
    if not total:
        raise ValueError("no samples")
    least = LEAST
    while len(text := _drawn(frames(stacks, least), total, title, f"{words}; frames under {least:.1%} left out")) > (
        MOST_BYTES
    ):
        least *= 1.5
    return text


def keep(name: str, stacks: Stacks, title: str, words: str = "") -> Path:
    """The flame graph in bench/results/NAME.svg. Raises ValueError: there is no sample."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.svg"
    path.write_text(render(stacks, title, words) + "\n", "utf-8")
    return path


def _drawn(boxes: list[Frame], total: int, title: str, words: str) -> str:
    depth = max((f.depth for f in boxes), default=0) + 1
    height = TOP + depth * ROW + 8
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="Helvetica, Arial, '
        'sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{WIDTH / 2:g}" y="20" font-size="17" text-anchor="middle" fill="#111111">{escape(title)}</text>',
        f'<text x="{WIDTH / 2:g}" y="37" text-anchor="middle" fill="#555555">{total:,} samples{escape(words)}</text>',
    ]
    lines += _boxes(boxes, total, height)
    return "\n".join([*lines, "</svg>"])


def _boxes(boxes: Iterable[Frame], total: int, height: int) -> Iterable[str]:
    scale = (WIDTH - 16) / total
    for frame in boxes:
        x, width = 8 + frame.first * scale, frame.samples * scale
        y = height - 8 - (frame.depth + 1) * ROW
        fits = int((width - 6) / CHARACTER)
        shown = frame.name if len(frame.name) <= fits else frame.name[: fits - 1] + "…" if fits > 3 else ""
        yield (
            f'<g><title>{escape(frame.name)}: {frame.samples / total:.1%}</title><rect x="{x:.1f}" y="{y}" '
            f'width="{max(width - 0.5, 0.3):.1f}" height="{ROW - 1}" fill="{_color(frame.name)}"/>'
            + (f'<text x="{x + 3:.1f}" y="{y + 12}" fill="#111111">{escape(shown)}</text>' if shown else "")
            + "</g>"
        )


def _color(name: str) -> str:
    """A warm color, the same for the same function in every graph."""
    drawn = zlib.crc32(name.encode())
    return f"hsl({14 + drawn % 40},{70 + (drawn >> 8) % 20}%,{64 + (drawn >> 16) % 14}%)"
