"""What a work yields: figures of ours and of peers on the same footing, and how they are gathered fairly."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Measured:
    """One run: a value in its table's unit, bytes that travelled where they are known, and a remark."""

    value: float
    wire_bytes: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One who takes part. `run` prepares itself untimed and returns what it measured; it raises when it failed."""

    name: str
    run: Callable[[], Measured]
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """The median of `runs`. A contestant that failed once has no value, only `failed`: it must not look quick."""

    name: str
    value: float | None
    runs: tuple[float, ...] = ()
    wire_bytes: int | None = None
    note: str = ""
    ours: bool = False
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Share:
    """An aim beside a peer of the same run: at least so much of the speed of the row `of`."""

    of: str
    least: float


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the report.

    Attributes:
        name: of the work, as `--only` takes it.
        title: for people.
        unit: of the values.
        higher_is_better: for rates.
        figures: rows.
        aims: what we want, by the name of our row, in the same unit.
        shares: what we want, by the name of our row, as a share of a peer's speed.
        baseline: the row that ratios refer to.
        remark: how to read it.
    """

    name: str
    title: str
    unit: str
    figures: tuple[Figure, ...]
    higher_is_better: bool = False
    aims: dict[str, float] = field(default_factory=dict)
    shares: dict[str, Share] = field(default_factory=dict)
    baseline: str = ""
    remark: str = ""

    def value(self, name: str) -> float | None:
        """The value of a row; None when there is none."""
        return next((each.value for each in self.figures if each.name == name), None)

    def ratio(self, figure: Figure) -> float | None:
        """How often the baseline's value goes into a figure's: None without either."""
        base = self.value(self.baseline)
        return figure.value / base if base and figure.value is not None else None

    def speed(self, figure: Figure) -> float | None:
        """Share of the speed of the peer that its aim names: rates as they are, times turned round."""
        share = self.shares.get(figure.name)
        peer = self.value(share.of) if share else None
        if not peer or not figure.value:
            return None
        return figure.value / peer if self.higher_is_better else peer / figure.value

    def aim(self, name: str) -> float | None:
        """The aim of a row in the table's unit; None when it has none, or its peer has no value."""
        share = self.shares.get(name)
        if share is None:
            return self.aims.get(name)
        peer = self.value(share.of)
        if not peer:
            return None
        return share.least * peer if self.higher_is_better else peer / share.least

    def verdict(self, figure: Figure) -> str:
        """`met` or `short` where there is an aim."""
        aim = self.aim(figure.name)
        if aim is None:
            return ""
        if figure.value is None:
            return "short"
        return "met" if (figure.value >= aim if self.higher_is_better else figure.value <= aim) else "short"


def contest(contestants: Sequence[Contestant], rounds: int) -> tuple[Figure, ...]:
    """Run all of them `rounds` times, each round in another order, so that drift of the machine hits all alike."""
    runs: dict[str, list[Measured]] = {each.name: [] for each in contestants}
    failed: dict[str, str] = {}
    for turn in range(rounds):
        at = turn % len(contestants)
        for each in (*contestants[at:], *contestants[:at]):
            if each.name in failed:
                continue
            try:
                runs[each.name].append(each.run())
            except Exception as error:  # noqa: BLE001 - whatever it was, it is shown, and the others go on
                failed[each.name] = f"{type(error).__name__}: {error}"[:300]
    return tuple(_figure(each, runs[each.name], failed.get(each.name, "")) for each in contestants)


def _figure(who: Contestant, runs: list[Measured], failed: str) -> Figure:
    if failed or not runs:
        return Figure(who.name, None, ours=who.ours, failed=failed or "it was not run")
    values = tuple(run.value for run in runs)
    middle = min(runs, key=lambda run: abs(run.value - statistics.median(values)))
    return Figure(who.name, statistics.median(values), values, middle.wire_bytes, middle.note, who.ours)


def clocked(action: Callable[[], int | None]) -> Measured:
    """Seconds that an action takes; what it returns are its bytes on the wire."""
    begun = time.perf_counter()
    wire = action()
    return Measured(time.perf_counter() - begun, wire)
