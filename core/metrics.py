"""Counting, and what was counted as Prometheus reads it.

What is counted are plain numbers of the parts that know them; they are collected when somebody asks. So a process pays
next to nothing for its metrics while nobody looks.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from importlib import metadata
from math import inf

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from core.metrics_table import Definition, of_kind

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_TEXT = 128  # characters of a label's value


class Buckets:
    """A histogram: how many values were at most each of its bounds, and their sum. `bounds` ascend."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """`value` was seen, so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def add_since(self, began_s: Sequence[float], now_s: float) -> None:
        """The time from each of `began_s`, which ascend, until now. Costs little more than the sum of them."""
        if not began_s:
            return
        bounds, counts, count = self.bounds, self.counts, len(began_s)
        self.total += now_s * count - sum(began_s)
        place = bisect_left(bounds, now_s - began_s[-1])  # of the youngest
        last = bisect_left(bounds, now_s - began_s[0])
        while place < last:
            older = bisect_left(began_s, now_s - bounds[place], 0, count)
            counts[place] += count - older
            count = older
            place += 1
        counts[last] += count


Value = float | Buckets
Row = tuple[str, tuple[str, ...], Value]  # name, values of its labels, value
Source = Callable[[], Iterable[Row]]


class Book(Collector):
    """All metrics of one process. `kind` as in core/metrics_table.py."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._definitions = {d.name: d for d in of_kind(kind)}
        self._sources: list[Source] = [_build]
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def add(self, source: Source) -> None:
        """`source` is asked for its rows at each exposition: quickly, and without waiting for anybody."""
        self._sources.append(source)

    def exposition(self) -> bytes:
        """Everything in the text format, as of now."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing: the names are this program's own, and unlike each other."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The families of the kind, those without rows too. Raises KeyError for a row of another kind's metric."""
        rows: dict[str, list[Row]] = {name: [] for name in self._definitions}
        for source in self._sources:
            for row in source():
                rows[row[0]].append(row)
        for name, definition in self._definitions.items():
            yield _family(definition, rows[name])


def _build() -> Iterable[Row]:
    return [("rushgate_build_info", (_version(),), 1.0)]


@cache
def _version() -> str:
    try:
        return metadata.version("rushgate")
    except metadata.PackageNotFoundError:
        return ""


def _family(definition: Definition, rows: list[Row]) -> Metric:
    name, kind, names, words = definition.name, definition.kind, definition.labels, definition.help
    if kind == "histogram":
        histogram = HistogramMetricFamily(name, words, labels=names)
        for _, labels, value in rows or [(name, (), Buckets(definition.bounds))] * (not names):
            assert isinstance(value, Buckets)  # noqa: S101 - a source of ours
            histogram.add_metric(_texts(labels), _cumulative(value), value.total)
        return histogram
    family = (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(name, words, labels=names)
    for _, labels, value in rows:
        assert not isinstance(value, Buckets)  # noqa: S101 - likewise
        family.add_metric(_texts(labels), value)
    return family


def _texts(labels: tuple[str, ...]) -> list[str]:
    """Values of bounded length that can be written as UTF-8, whatever they were made of."""
    return [text[:MAX_TEXT].encode("utf-8", "replace").decode() for text in labels]


def _cumulative(buckets: Buckets) -> list[tuple[str, float]]:
    found, count = [], 0
    for bound, more in zip((*buckets.bounds, inf), buckets.counts, strict=True):
        count += more
        found.append(("+Inf" if bound == inf else repr(bound), float(count)))
    return found
