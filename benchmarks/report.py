"""Everything that a run found out, and its JSON."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from benchmarks.results import Table


@dataclass
class Report:
    """A run.

    Attributes:
        begun: date and time, UTC.
        machine: what it ran on.
        load: how busy the machine was with other work.
        quick: see Bench.quick.
        limits: bytes per second; see limits.measure.
        sync_ms: milliseconds of a small sync; see limits.sync_latency.
        tables: results.
        target_peaks: by work, the largest resident memory that a target of it ever had, in bytes.
        failed: works that could not be measured, and why.
    """

    begun: str
    machine: str
    load: str
    quick: bool
    limits: dict[str, float] = field(default_factory=dict)
    sync_ms: dict[str, float] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    target_peaks: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """As a JSON object; ratios and verdicts are in it."""
        tables = [
            {
                **asdict(table),
                "figures": [
                    {
                        **asdict(figure),
                        "ratio": table.ratio(figure),
                        "speed": table.speed(figure),
                        "verdict": table.verdict(figure),
                    }
                    for figure in table.figures
                ],
            }
            for table in self.tables
        ]
        return json.dumps({**asdict(self), "tables": tables}, indent=1)


def begin(*, quick: bool) -> Report:
    """A report of this machine at this moment."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    machine = f"{os.cpu_count()} CPUs, {memory:.0f} GiB, Linux {platform.release()}, Python {platform.python_version()}"
    one, five, _ = os.getloadavg()
    load = f"load before the run {one:.1f} (1 min), {five:.1f} (5 min)"
    return Report(datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), machine, load, quick)
