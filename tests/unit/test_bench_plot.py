"""Plots: what is in the file, and what must not be."""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import flame, plot
from bench.environment import RESULTS as KEPT


def spread(median: float) -> dict[str, float]:
    return {"median": median, "min": median * 0.9, "max": median * 1.1, "rounds": 7}


GROUPS = {
    "Rushgate": {"64": spread(24_000.0), "256": spread(27_200.0)},
    "Fastify & ioredis": {"64": spread(16_000.0)},
}


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(plot, "RESULTS", tmp_path)
    monkeypatch.setattr(flame, "RESULTS", tmp_path)
    return tmp_path


def drawn(path: Path) -> str:
    """The file's text, which is well-formed, small, and names nothing outside itself."""
    text = path.read_text("utf-8")
    ElementTree.fromstring(text)  # noqa: S314 - made by us a moment ago
    assert len(text) < 60_000
    assert set(re.findall(r"https?://[^\"' <]*", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<script|<\?xml|<!--|@import|url\(|20\d\d-\d\d-\d\d", text)
    return text


def test_bars_show_title_unit_values_and_whiskers(results: Path) -> None:
    path = plot.bars("peers", "Accepted orders", "accepted/s", GROUPS)
    assert path == results / "peers.svg"
    text = drawn(path)
    for words in ("Accepted orders", "accepted/s (more is better", "Rushgate", "Fastify &amp; ioredis"):
        assert words in text
    for figures in ("24,000 (21,600-26,400)", "27,200 (24,480-29,920)", "16,000 (14,400-17,600)"):
        assert figures in text
    assert len(re.findall(r'class="ci"', text)) == 3


def test_figures_stand_behind_their_whiskers() -> None:
    path = plot.bars("peers", "t", "u", {"a": {"x": spread(10.0)}, "b": {"x": spread(99.0)}})
    root = ElementTree.fromstring(drawn(path))  # noqa: S314 - made by us a moment ago
    places = [float(t.get("x", "")) for t in root.iter(f"{plot.SVG}text") if t.get("class") == "value"]
    ends = [
        max(float(x) for x in re.findall(r"[ML](-?[\d.]+) ", p.get("d", "")))
        for g in root.iter(f"{plot.SVG}g") if g.get("class") == "ci" for p in g
    ]  # fmt: skip
    figures = sorted(places)
    assert len(ends) == 2
    assert all(place >= end for place, end in zip(figures, sorted(ends), strict=True))


@pytest.mark.parametrize("series", [1, 2, 3, 4, 5, 6, 9])
def test_every_series_of_a_legend_is_within_the_plot(series: int) -> None:
    path = plot.bars("many", "t", "u", {"a": {f"series {n}": spread(10.0) for n in range(series)}})
    root = ElementTree.fromstring(drawn(path))  # noqa: S314 - made by us a moment ago
    height = float(root.get("viewBox", "").split()[3])
    boxes = [
        float(box.get("y", "")) + float(box.get("height", ""))
        for legends in root.iter(f"{plot.SVG}g") if legends.get("class") == "legends"
        for box in legends.iter(f"{plot.SVG}rect")
    ]  # fmt: skip
    assert len(boxes) == (series if series > 1 else 0)
    top = next((_shift(g) for g in root.iter(f"{plot.SVG}g") if g.get("class") == "legends"), 0.0)
    assert all(top + y <= height - plot.MARGIN / 2 for y in boxes)


def _shift(node: ElementTree.Element) -> float:
    return float(re.findall(r"[\d.]+", node.get("transform", ""))[1])


def test_less_is_better_is_said() -> None:
    assert "us per order (less is better" in drawn(
        plot.bars("cpu", "CPU", "us per order", GROUPS, more_is_better=False)
    )


def test_lines_on_a_logarithmic_axis_name_their_points() -> None:
    text = drawn(plot.lines("growth", "Cost", "orders", "us", {"store": [(1e4, 7.0), (1e6, 7.2)]}, log_x=True))
    assert "10,000" in text
    assert "1,000,000" in text


def test_the_same_data_are_the_same_bytes() -> None:
    def both() -> list[bytes]:
        series = {"a": [(n / 7, n * n / 3) for n in range(500)]}
        return [plot.bars("b", "t", "u", GROUPS).read_bytes(), plot.lines("l", "t", "x", "u", series).read_bytes()]

    assert both() == both()


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        plot.bars("none", "t", "u", {"a": {}})
    with pytest.raises(ValueError, match="no values"):
        plot.lines("none", "t", "x", "u", {"a": []})
    with pytest.raises(ValueError, match="above 0"):
        plot.lines("none", "t", "x", "u", {"a": [(0.0, 1.0)]}, log_x=True)


def test_a_flame_graph_has_frames_by_their_share(results: Path) -> None:
    stacks = flame.folded("main;take;pack 60\nmain;take;read 30\nmain;idle<> 9\nmain;rare 1\n")
    path = flame.keep("flame-x", stacks, "A rush", ", on one core")
    assert path == results / "flame-x.svg"
    text = drawn(path)
    assert "<title>take: 90.0%</title>" in text
    assert "<title>idle&lt;&gt;: 9.0%</title>" in text
    assert "100 samples, on one core" in text


def test_rare_frames_are_dropped_until_a_flame_graph_is_small() -> None:
    stacks = {(f"frame_with_a_long_name_{n}", *(f"f{n}_{d}_of_a_deep_stack" for d in range(60))): 1 for n in range(400)}
    assert len(flame.frames(stacks, 0.0)) * 60 > flame.MOST_BYTES
    assert len(flame.render(stacks, "deep")) <= flame.MOST_BYTES
    assert flame.frames({("a",): 999, ("b",): 1}, 0.01) == [flame.Frame("a", 0, 0, 999)]
    with pytest.raises(ValueError, match="no samples"):
        flame.render({}, "none")


def test_stacks_of_perf_are_read_from_the_outside_in() -> None:
    said = (
        "valkey-server \n\t    55d luaV_execute+0x10 \n\t    5 [unknown]\n\t    6 [unknown]\n"
        "\t    66e evalGenericCommand+0x3c\n\t    77f main+0x1\n\n"
        "valkey-server \n\t    55d fdatasync\n\t    77f main+0x9\n\n"
    )
    assert flame.from_perf(said) == {
        ("valkey-server", "main", "evalGenericCommand", "[unknown]", "luaV_execute"): 1,
        ("valkey-server", "main", "fdatasync"): 1,
    }


def test_pygal_leaves_imports_as_they_were() -> None:
    assert all(hasattr(finder, "find_spec") for finder in sys.meta_path)


@pytest.mark.parametrize("path", sorted(KEPT.glob("*.svg")), ids=lambda path: path.name)
def test_kept_plots_are_small_and_name_nothing_outside_themselves(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text) <= (flame.MOST_BYTES + 1 if path.name.startswith("flame-") else 60_000)
    assert set(re.findall(r"https?://[^\"' <]*", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<script|/home/|/root/|/tmp/", text)
