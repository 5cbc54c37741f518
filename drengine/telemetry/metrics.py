"""Metrics as data: each family is defined once, and from that come registration, the reference page and its tests.

Counters and histograms are updated as things happen. Gauges are *asked for* at each scrape, so that lag keeps growing
while the peer is unreachable and nothing has to tick. Label values are bounded where the family is defined.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

disable_created_metrics()  # type: ignore[no-untyped-call] # a time-series more for each counter, of which nothing here makes use


class Kind(enum.StrEnum):
    """What a family's samples mean."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True)
class Family:
    """A metric: name without prefix, with its base unit last (counters end in ``_total``), and its labels."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """As Prometheus sees it."""
        return f"drengine_{self.name}"


@dataclass(frozen=True)
class Sample:
    """A gauge's value at this moment; `labels` in the family's order."""

    family: Family
    value: float
    labels: tuple[str, ...] = ()


class Metrics:
    """One process part's metrics in a registry of their own."""

    def __init__(
        self,
        families: Iterable[Family],
        gauges: Callable[[], Iterable[Sample]],
        counts: Callable[[], Iterable[Sample]] = tuple,
    ) -> None:
        """Both are called at each scrape, in the scraper's thread; they must be quick and thread-safe.

        `gauges` gives their values, `counts` those of counters that something else counts.
        """
        self._counts = counts
        self._reached: dict[tuple[Family, tuple[str, ...]], float] = {}
        self.registry = CollectorRegistry()
        self._families = tuple(families)
        self._counters: dict[Family, Counter] = {}
        self._histograms: dict[Family, Histogram] = {}
        for family in self._families:
            if family.kind is Kind.COUNTER:
                self._counters[family] = Counter(family.full_name, family.help, family.labels, registry=self.registry)
            elif family.kind is Kind.HISTOGRAM:
                self._histograms[family] = Histogram(
                    family.full_name, family.help, family.labels, registry=self.registry, buckets=SECONDS_BUCKETS
                )
        known = [family for family in self._families if family.kind is Kind.GAUGE]
        self.registry.register(_Gauges(known, gauges))

    def count(self, family: Family, amount: float = 1, labels: tuple[str, ...] = ()) -> None:
        """Add to a counter."""
        counter = self._counters[family]
        (counter.labels(*labels) if family.labels else counter).inc(amount)

    def reach(self, family: Family, now: float, labels: tuple[str, ...] = ()) -> None:
        """Bring a counter to what something else has counted; one that began anew is added from there."""
        last = self._reached.get((family, labels), 0.0)
        self.count(family, now if now < last else now - last, labels)
        self._reached[family, labels] = now

    def keep(self, label: str, values: Collection[str]) -> None:
        """Forget what was counted under this label for anything else."""
        for family, counter in self._counters.items():
            if label in family.labels:
                counted = [sample.labels for metric in counter.collect() for sample in metric.samples]
                for labels in (each for each in counted if each[label] not in values):
                    counter.remove(*(labels[name] for name in family.labels))

    def observe(self, family: Family, value: float, labels: tuple[str, ...] = ()) -> None:
        """Add an observation to a histogram."""
        histogram = self._histograms[family]
        (histogram.labels(*labels) if family.labels else histogram).observe(value)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        for sample in self._counts():
            self.reach(sample.family, sample.value, sample.labels)
        return generate_latest(self.registry)


class _Gauges(Collector):
    """Asks for gauges at each scrape."""

    def __init__(self, families: list[Family], gauges: Callable[[], Iterable[Sample]]) -> None:
        self._families = families
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        made: Mapping[Family, GaugeMetricFamily] = {
            family: GaugeMetricFamily(family.full_name, family.help, labels=family.labels) for family in self._families
        }
        for sample in self._gauges():
            made[sample.family].add_metric(sample.labels, sample.value)
        return made.values()

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask for values."""
        return ()
