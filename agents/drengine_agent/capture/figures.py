"""What a tracker tells of itself: a dataclass whose fields are its figures, each with its metric where it has one.

    @dataclass(frozen=True, kw_only=True)
    class TapFigures(Figures):
        journal_used_bytes: int = gauge("agent_journal_used_bytes", "Bytes of the capture journal in use.")

All fields are in `status`, by their names. Those made with `gauge` and `counter` are in the metrics as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from drengine.telemetry.metrics import Family, Kind

SOURCE = ("source",)
"""The first label of every metric of an agent."""


@dataclass(frozen=True, slots=True)
class Metric:
    """How a field is exported.

    Attributes:
        family: the metric.
        labels: values of the labels after the source's.
        by: every value of one more label: the field holds numbers by them. Each is exported from the start, so that
            an increase can be seen.
    """

    family: Family
    labels: tuple[str, ...] = ()
    by: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The figures of a tracker at one moment; one that tells none has no fields."""

    def readings(self) -> Iterator[tuple[Family, tuple[str, ...], float]]:
        """Each metric with the values of its labels, without the source's, and its value."""
        for name, metric in _metrics(type(self)):
            value = getattr(self, name)
            if metric.by:
                yield from ((metric.family, (*metric.labels, each), value.get(each, 0)) for each in metric.by)
            else:
                yield metric.family, metric.labels, value

    def shown(self) -> dict[str, object]:
        """For `status`."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}


def gauge(name: str, help: str) -> Any:
    """A field that is exported as it is at the moment of asking; `name` is the metric's, without prefix."""
    return _field(Metric(Family(name, Kind.GAUGE, help, SOURCE)))


def counter(
    name: str,
    help: str,
    *,
    labels: Mapping[str, str] | None = None,
    by: tuple[str, Iterable[str]] | None = None,
) -> Any:
    """A field that only grows while the agent runs.

    Args:
        name: of the metric, without prefix; it ends in ``_total``.
        help: what it counts.
        labels: further labels of the metric, with their values for this field.
        by: one more label, and all of its values; the field then maps these to numbers.
    """
    more = dict(labels or {})
    names = (*SOURCE, *more, *((by[0],) if by else ()))
    return _field(Metric(Family(name, Kind.COUNTER, help, names), tuple(more.values()), tuple(by[1]) if by else ()))


def families_of(figures: type[Figures]) -> tuple[Family, ...]:
    """The metrics of a kind of figures, each once."""
    return tuple(dict.fromkeys(metric.family for _, metric in _metrics(figures)))


def _field(metric: Metric) -> Any:
    return dataclasses.field(metadata={"metric": metric})


def _metrics(figures: type[Figures]) -> Iterator[tuple[str, Metric]]:
    for each in dataclasses.fields(figures):
        if "metric" in each.metadata:
            yield each.name, each.metadata["metric"]
