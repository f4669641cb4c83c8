"""The plots of a rush as SVG that needs nothing from outside. Needs the package `pygal` (extra `loadtest`)."""

import math
import re
import sys
from array import array
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from loadtest.report import Moment, RushReport
from loadtest.samples import Samples

WIDTH, HEIGHT = 760, 320
POINTS_A_DECADE = 40  # of the percentile plot
MISSING = "needs the package pygal: pip install '.[loadtest]' in the project's folder"
LABELS = 8  # on a time axis, about
_SCRIPT = re.compile(r"<script\b.*?</script>", re.DOTALL)
_NINES = ((0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %"), (0.99999, "99.999 %"))
_FONT = "system-ui, sans-serif"

# outcome -> its colour, a variable of the page: light and dark have their own
COLOURS = {
    "accepted": "var(--green)",
    "replayed": "var(--teal)",
    "sold_out": "var(--blue)",
    "over_limit": "var(--purple)",
    "limited": "var(--yellow)",
    "unavailable": "var(--red)",
    "unknown": "var(--red)",
    "unexpected": "var(--red)",
}
OTHER_COLOUR = "var(--grey)"


class ChartsUnusable(Exception):
    """The package is missing."""


def ready() -> None:
    """Raises ChartsUnusable, so that a run without it need not be made for nothing."""
    try:
        import pygal  # type: ignore[import-untyped] # it has none
    except ImportError as exc:
        raise ChartsUnusable(MISSING) from exc
    # Its hook for plug-ins is of a form that Python no longer knows: it would warn at every import from here on.
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != pygal.__name__]


def percentiles(samples: Samples) -> str:
    """Latency by percentile, the tail spread out: from due time, and as a generator that waits would have seen it."""
    names = {"from due time": "var(--blue)", "service only": "var(--yellow)"}
    chart = _chart("XY", names, y_title="ms")
    most, values = 0.0, list[float]()
    for name, seconds in zip(names, (samples.latency_s, samples.service_s), strict=True):
        points = _tail(seconds)
        most = max(most, points[-1][0] if points else 0.0)
        values += [ms for _, ms in points]
        chart.add(name, [(x, math.log10(ms)) for x, ms in points])
    _log_axis(chart, values)
    labels = [(round(math.log10(1 / (1 - share)), 6), text) for share, text in _NINES]
    chart.x_labels = [{"value": x, "label": text} for x, text in labels if x <= most + 0.3]
    chart.xrange = (0, max(most, 1.0))
    return _svg(chart, names)


def answers(report: RushReport) -> str:
    """Answers a second, by outcome."""
    names = [name for name in report.outcomes if report.outcomes[name]]
    colours = {name: COLOURS.get(name, OTHER_COLOUR) for name in names}
    chart = _chart("StackedLine", colours, y_title="answers/s", fill=True)
    timeline = report.timeline[:-1] or report.timeline  # the last piece is not whole, and would look like a fall
    _time_axis(chart, timeline)
    for name in names:
        chart.add(name, [m.answers.get(name, 0) / m.width_s for m in timeline])
    return _svg(chart, colours)


def latencies(report: RushReport) -> str:
    """Latency over time, by when the requests were due."""
    colours = {"p50": "var(--green)", "p99": "var(--blue)", "max": "var(--red)"}
    chart = _chart("Line", colours, y_title="ms")
    _time_axis(chart, report.timeline)
    lines = {
        "p50": [m.latency.p50_ms for m in report.timeline],
        "p99": [m.latency.p99_ms for m in report.timeline],
        "max": [m.latency.max_ms for m in report.timeline],
    }
    for name, values in lines.items():
        chart.add(name, [math.log10(ms) if ms > 0 else None for ms in values])
    _log_axis(chart, [ms for values in lines.values() for ms in values if ms > 0])
    return _svg(chart, colours)


def lag(report: RushReport) -> str:
    """How late the generator itself was, over time."""
    chart = _chart("Line", {"generator late": "var(--yellow)"}, y_title="ms", fill=True)
    _time_axis(chart, report.timeline)
    chart.add("generator late", [m.lag_ms for m in report.timeline])
    return _svg(chart, {})


def _tail(seconds: "array[float]") -> list[tuple[float, float]]:
    """(log10 of 1/(1 - percentile), ms), from the fastest to the slowest."""
    ranked = sorted(seconds)
    if not ranked:
        return []
    decades = math.log10(len(ranked))
    steps = math.ceil(decades * POINTS_A_DECADE)
    points = []
    for x in (*(n / POINTS_A_DECADE for n in range(steps)), decades):
        rank = min(len(ranked) - 1, math.ceil((1 - 10**-x) * len(ranked)))
        points.append((round(x, 4), max(round(ranked[rank] * 1000, 4), 0.001)))
    return points


def _chart(kind: str, colours: Mapping[str, str], **more: Any) -> Any:
    ready()
    import pygal
    from pygal.style import Style  # type: ignore[import-untyped] # it has none

    style = Style(
        background="transparent",
        plot_background="transparent",
        foreground="var(--soft)",
        foreground_strong="var(--ink)",
        foreground_subtle="var(--soft)",
        guide_stroke_color="var(--line)",
        major_guide_stroke_color="var(--line)",
        guide_stroke_dasharray="none",
        major_guide_stroke_dasharray="none",
        opacity=".55",
        stroke_width="2",
        stroke_opacity="1",
        font_family=_FONT,
        label_font_size=13,
        major_label_font_size=13,
        title_font_size=13,
        no_data_font_size=18,
        colors=tuple(colours.values()) or (OTHER_COLOUR,),
        value_colors=("var(--ink)",) * max(len(colours), 1),  # else it would compute one from a colour it cannot read
    )
    settings: dict[str, Any] = {
        "width": WIDTH,
        "height": HEIGHT,
        "style": style,
        "js": (),
        "disable_xml_declaration": True,
        "show_dots": False,
        "max_scale": 8,
        "show_legend": False,  # the page has one that is readable on a phone
        "margin": 6,
        "margin_right": 40,
        "x_label_rotation": 0,
        "truncate_label": -1,
        "no_data_text": "nothing",
        "value_formatter": _figure,
    }
    return getattr(pygal, kind)(**settings | more)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.2g}"


def _time_axis(chart: Any, timeline: Sequence[Moment]) -> None:
    every = max(1, math.ceil(len(timeline) / LABELS))
    chart.x_labels = [f"{m.at_s:g} s" for m in timeline]
    chart.x_labels_major_every = every
    chart.show_minor_x_labels = False


def _log_axis(chart: Any, values: Sequence[float]) -> None:
    """The y axis of logarithms: pygal's own would take those of x too, and label ten values a decade."""
    if not values:
        return
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    ticks = [step * 10.0**decade for decade in range(low, high + 1) for step in steps]
    first = max((t for t in ticks if t <= min(values)), default=ticks[0])
    last = min((t for t in ticks if t >= max(values)), default=ticks[-1])
    chart.y_labels = [{"value": math.log10(t), "label": f"{t:,g}"} for t in ticks if first <= t <= last]
    chart.range = (math.log10(first), math.log10(last))


def _svg(chart: Any, legend: Mapping[str, str]) -> str:
    """The plot and its legend, without the scripts that it would bring along: the page runs none."""
    keys = "".join(
        f'<span style="--c:{colour}">{escape(name.replace("_", " "))}</span>' for name, colour in legend.items()
    )
    plot = _SCRIPT.sub("", chart.render(is_unicode=True))
    return f'{f"""<div class="legend">{keys}</div>""" if keys else ""}<div class="plot">{plot}</div>'
