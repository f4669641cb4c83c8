"""HdrHistogram files: what other tools read, and what the runs of several generators can be added up from.

A log (`.hlog`) has a histogram a second, a distribution (`.hgrm`) is what the plotters draw. Values are nanoseconds
from the due time to the last answer, three significant digits, up to an hour; the distribution is in milliseconds.

Needs the package `hdrhistogram` (extra `loadtest`); nothing else does, so it is imported when it is used.
"""

import re
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec

from loadtest.samples import Samples

LOWEST_NS, HIGHEST_NS, DIGITS = 1_000, 3_600_000_000_000, 3
MS = 1_000_000.0  # nanoseconds
TICKS = 5  # of a distribution, per half distance
SECONDS_MAX = 100_000  # intervals of a log that are read
MISSING = "needs the package hdrhistogram: pip install '.[loadtest]' in the project's folder"


class HdrUnusable(Exception):
    """The package is missing, or the file is no histogram log; the text says which."""


class Interval(msgspec.Struct, frozen=True):
    """A histogram of a log. `start_s` is wall clock, seconds since 1970."""

    start_s: float
    end_s: float
    histogram: Any


def new_histogram() -> Any:
    """An empty one. Raises HdrUnusable: the package is missing."""
    try:
        from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped] # it has none
    except ImportError as exc:
        raise HdrUnusable(MISSING) from exc
    return HdrHistogram(LOWEST_NS, HIGHEST_NS, DIGITS)


def intervals_of(samples: Samples, started_s: float) -> list[Interval]:
    """A histogram for each second of a rush, by when the answers came. Raises HdrUnusable.

    Args:
        started_s: when the rush began, wall clock.
    """
    seconds: dict[int, Any] = {}
    for due_s, latency_s in zip(samples.due_s, samples.latency_s, strict=True):
        at = int(due_s + latency_s)
        histogram = seconds.get(at)
        if histogram is None:
            histogram = seconds[at] = new_histogram()
        histogram.record_value(min(max(round(latency_s * 1e9), LOWEST_NS), HIGHEST_NS))
    return [Interval(started_s + at, started_s + at + 1, seconds[at]) for at in sorted(seconds)]


def added(intervals: Iterable[Interval]) -> Any:
    """All of them as one histogram. Raises HdrUnusable."""
    whole = new_histogram()
    for interval in intervals:
        whole.add(interval.histogram)
    return whole


def by_second(intervals: Iterable[Interval]) -> list[Interval]:
    """Intervals of several logs, those of one second of the wall clock added up, in the order of time."""
    seconds: dict[int, Any] = {}
    for interval in intervals:
        at = int(interval.start_s)
        if at not in seconds:
            seconds[at] = new_histogram()
        seconds[at].add(interval.histogram)
    return [Interval(float(at), at + 1.0, seconds[at]) for at in sorted(seconds)]


def write_log(path: Path, intervals: Sequence[Interval], comment: str) -> None:
    """The file is a histogram log, version 1.2. Raises HdrUnusable, OSError."""
    new_histogram()  # the package is there
    from hdrh.log import HistogramLogWriter  # type: ignore[import-untyped] # it has none

    base_s = intervals[0].start_s if intervals else 0.0
    with path.open("w", encoding="utf-8") as file:
        writer = HistogramLogWriter(file)
        writer.output_comment(f"[{comment}]")
        writer.output_log_format_version()
        # Not by the library: its output_start_time fails.
        writer.output_comment(f"[StartTime: {base_s:.3f} (seconds since epoch)]")
        writer.output_base_time(base_s * 1000)
        writer.output_legend()
        for interval in intervals:
            start_s = interval.start_s - base_s
            # A start of 0 is taken for none by the library, which then looks into the histogram.
            interval.histogram.set_start_time_stamp(start_s * 1000)
            interval.histogram.set_end_time_stamp((interval.end_s - base_s) * 1000)
            writer.output_interval_histogram(interval.histogram, max_value_unit_ratio=MS)


def read_log(path: Path) -> list[Interval]:
    """The histograms of a log. Raises HdrUnusable, OSError."""
    reference = new_histogram()
    from hdrh.log import HistogramLogReader

    with path.open(encoding="utf-8", errors="replace") as file:
        if not file.readline().startswith("#"):
            raise HdrUnusable(f"{path} is no histogram log: it does not begin with #")
    found: list[Interval] = []
    reader = HistogramLogReader(str(path), reference)
    try:
        while len(found) < SECONDS_MAX:
            histogram = reader.get_next_interval_histogram()
            if histogram is None:
                break
            found.append(
                Interval(histogram.get_start_time_stamp() / 1000, histogram.get_end_time_stamp() / 1000, histogram)
            )
    except Exception as exc:  # whatever the decoder of the library meets
        raise HdrUnusable(f"{path}: interval {len(found) + 1} cannot be read: {exc!r}") from exc
    finally:
        reader.close()
    if not found:
        raise HdrUnusable(f"{path} has no histogram in it")
    return found


def write_distribution(path: Path, histogram: Any) -> None:
    """The file is a percentile distribution in milliseconds. Raises OSError."""
    lines = BytesIO()
    histogram.output_percentile_distribution(lines, MS, TICKS)
    # The library scales all figures but one.
    scaled = b"StdDeviation   = %12.3f" % (float(histogram.get_stddev()) / MS)
    path.write_bytes(re.sub(rb"StdDeviation +=[ 0-9.]+", scaled, lines.getvalue()))


def at_percentile(histogram: Any, percentile: float) -> float:
    """Milliseconds."""
    return float(histogram.get_value_at_percentile(percentile)) / MS
