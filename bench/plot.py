"""Plots of results as SVG: by pygal, then stripped of scripts, tooltips and every foreign address."""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pygal  # type: ignore[import-untyped] # it ships no types

from bench.environment import RESULTS

# pygal adds a finder of an old kind to Python's imports, for maps that we do not have: every import that fails after
# it would warn, and a warning is an error in our tests.
sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, pygal.PluginImportFixer)]

SVG = "{http://www.w3.org/2000/svg}"
WIDTH = 860
BAR = 22  # pixels of height a bar
LEGEND, LEGEND_COLUMNS = 20, 4  # and a row of the legend
MARGIN = 12
LABEL_ROOM = 1.5  # the axis is longer than the longest whisker by this factor: the figures stand there

# `!important`: pygal's own rules name the chart's id.
CSS = (
    "inline:text.plot_title{font-size:17px!important}text.axis-title{font-size:13px!important}"
    ".series path.line{stroke-width:2px!important}"
)
STYLE = pygal.style.Style(
    background="#ffffff",
    plot_background="#ffffff",
    foreground="#333333",
    foreground_strong="#111111",
    foreground_subtle="#888888",
    font_family="Helvetica, Arial, sans-serif",
    title_font_size=14,
    label_font_size=13,
    major_label_font_size=13,
    legend_font_size=13,
    value_font_size=12,
    guide_stroke_color="#dddddd",
    major_guide_stroke_color="#dddddd",
    guide_stroke_dasharray="2,3",
    major_guide_stroke_dasharray="2,3",
    opacity=".9",
    stroke_width="2",
    stroke_opacity="1",
    colors=("#1f6feb", "#e36209", "#2da44e", "#8250df", "#bf3989", "#57606a", "#9a6700", "#0a7ea4"),
    value_colors=("#111111",) * 8,
    ci_colors=("#111111",) * 8,
)


def bars(
    name: str,
    title: str,
    unit: str,
    groups: Mapping[str, Mapping[str, Mapping[str, float]]],
    more_is_better: bool = True,
) -> Path:
    """Horizontal bars of medians in bench/results/NAME.svg; whiskers and brackets give least and most of the rounds.

    Args:
        name: file name without its ending.
        title: first line of the plot.
        unit: of all values.
        groups: group label -> series label -> a `spread`; drawn from above in this order. A series may miss in a group.
        more_is_better: which way is good, as words below the title.

    Raises:
        ValueError: there is nothing to draw.
    """
    labels = list(dict.fromkeys(series for group in groups.values() for series in group))
    found = [s for group in groups.values() for s in group.values()]
    if not found:
        raise ValueError(f"plot {name}: no values")
    most = max(max(s["max"], s["median"]) for s in found) or 1.0
    single = len(labels) == 1
    chart = pygal.HorizontalBar(
        **_config(title, f"{unit} ({'more' if more_is_better else 'less'} is better; median, min to max)"),
        height=(106 if single else 116 + LEGEND * math.ceil(len(labels) / LEGEND_COLUMNS))
        + len(groups) * (len(labels) * BAR + 12),
        range=(0, most * LABEL_ROOM),
        print_values=True,
        print_values_position="top",
        **_legend(len(labels)),
        value_formatter=_tick,
    )
    # pygal counts from below.
    rows = list(groups.items())[::-1]
    chart.x_labels = [label for label, _ in rows]
    for series in labels:
        values: list[dict[str, Any] | None] = []
        for _, group in rows:
            if series in group:
                s = group[series]
                values.append(
                    {"value": s["median"], "formatter": _figure(s), "ci": {"low": s["min"], "high": s["max"]}}
                )
            else:
                values.append(None)
        chart.add(series, values)
    return _write(name, chart)


def lines(
    name: str,
    title: str,
    x_title: str,
    unit: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    log_x: bool = False,
) -> Path:
    """Lines through points (x, y) in bench/results/NAME.svg; the y axis begins at 0.

    Args:
        name: file name without its ending.
        title: first line of the plot.
        x_title: what x is, with its unit.
        unit: of y.
        series: label -> points in the order of x.
        log_x: x on a logarithmic scale; every x is above 0 then.

    Raises:
        ValueError: there is nothing to draw, or an x that has no logarithm.
    """
    points = [p for found in series.values() for p in found]
    if not points:
        raise ValueError(f"plot {name}: no values")
    if log_x and min(x for x, _ in points) <= 0:
        raise ValueError(f"plot {name}: x must be above 0 on a logarithmic scale")
    few = len({x for x, _ in points}) <= 12
    chart = pygal.XY(
        **_config(title, x_title),
        y_title=unit,
        height=430,
        range=(0, (max(y for _, y in points) or 1.0) * 1.1),
        **_legend(len(series)),
        show_x_guides=True,
        dots_size=3 if few else 0,
        show_dots=few,
        value_formatter=_tick,
        x_value_formatter=_tick,
    )
    if log_x:
        # pygal has a logarithm for y alone: x is drawn as its logarithm, and each label says what it stands for.
        xs = sorted({x for x, _ in points})
        chart.x_labels = [{"value": _log(x), "label": _tick(x)} for x in xs]
    for label, found in series.items():
        chart.add(label, [((_log(x) if log_x else x), y) for x, y in found])
    return _write(name, chart)


def _legend(series: int) -> dict[str, Any]:
    columns = min(series, LEGEND_COLUMNS)
    # pygal leaves room for the rows that are full.
    rest = math.ceil(series / columns) - series // columns
    return {
        "show_legend": series > 1,
        "legend_at_bottom": True,
        "legend_at_bottom_columns": columns,
        "margin_bottom": MARGIN + 6 + rest * LEGEND,
    }


def _config(title: str, x_title: str) -> dict[str, Any]:
    return {
        "title": title,
        "x_title": x_title,
        "width": WIDTH,
        "style": STYLE,
        "js": (),
        "css": ("file://style.css", "file://graph.css", CSS),
        "disable_xml_declaration": True,
        "margin": MARGIN,
        "margin_right": 40,
        "spacing": 8,
        "truncate_legend": -1,
        "truncate_label": -1,
    }


def _write(name: str, chart: Any) -> Path:
    """The chart as a file of drawing and style alone."""
    chart.uuid = name  # drawn by chance otherwise, and the same data shall give the same bytes
    root = ElementTree.fromstring(chart.render())  # noqa: S314 - made by pygal a moment ago; comments fall away here
    _strip(root)
    _figures_behind_whiskers(root)
    for node in root.iter(f"{SVG}text"):
        if node.get("class") == "title":
            node.set("class", "title axis-title")
    for key in [k for k in root.attrib if k.startswith("data-")]:
        del root.attrib[key]
    ElementTree.register_namespace("", SVG.strip("{}"))
    text = ElementTree.tostring(root, encoding="unicode")
    text = re.sub(r"(?<=[ \"(,ML])(-?\d+\.\d\d)\d+", r"\1", text)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.svg"
    path.write_text(text + "\n", "utf-8")
    return path


def _strip(node: ElementTree.Element) -> None:
    """No script, no tooltip, none of pygal's hidden descriptions."""
    for child in list(node):
        words = child.get("class", "").split()
        if child.tag in (f"{SVG}script", f"{SVG}desc") or "tooltip" in words:
            node.remove(child)
        else:
            if "reactive" in words:
                child.set("class", " ".join(w for w in words if w not in ("reactive", "tooltip-trigger")))
            _strip(child)


def _figures_behind_whiskers(root: ElementTree.Element) -> None:
    """Each printed figure begins where its whisker ends, as pygal prints it over the whisker."""
    series = [g for g in root.iter(f"{SVG}g") if "series" in g.get("class", "").split()]
    whiskers: dict[str, list[float]] = {}
    for g in series:
        for path in g.iter(f"{SVG}path"):
            ends = [float(x) for x in re.findall(r"[ML](-?[\d.]+) ", path.get("d", ""))]
            whiskers.setdefault(g.get("class", ""), []).append(max(ends))
    for g in series:
        ends = whiskers.get(g.get("class", ""), [])
        figures = [t for t in g.iter(f"{SVG}text") if "value" in t.get("class", "").split()]
        if ends and len(ends) == len(figures):
            for text, end in zip(figures, ends, strict=True):
                text.set("x", str(end + 6))
                text.set("text-anchor", "start")


def _figure(s: Mapping[str, float]) -> Any:
    """What is printed at a bar: `31,200 (29,900-32,100)`; pygal wants a function."""
    digits = _digits(s["median"])
    words = f"{s['median']:,.{digits}f}"
    if s["max"] > s["min"]:
        words += f" ({s['min']:,.{digits}f}-{s['max']:,.{digits}f})"
    return lambda _: words


def _digits(value: float) -> int:
    return 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2


def _tick(value: Any) -> str:
    """A number at an axis: 10,000 and 0.5, no trailing zeros."""
    if isinstance(value, tuple | list):
        value = value[1]
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.2f}".rstrip("0").rstrip(".")


def _log(x: float) -> float:
    return math.log10(x)
