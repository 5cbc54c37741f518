"""One module for each work. Its `measure(bench)` returns tables; WORKS says which there are, in order."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from benchmarks.bench import Bench
from benchmarks.results import Table

WORKS = (
    "initial_copy",
    "changes",
    "restore",
    "export_ready",
    "export_io",
    "pgbench",
    "pg_recovery",
    "hydration",
    "tap",
    "lag",
    "store_memory",
    "many_agents",
    "sessions",
    "tracker_overhead",
    "live_disks",
    "control_messages",
    "failback",
    "recovery_time",
    "encryption",
    "object_store",
    "catalogue_commits",
)


def load(name: str) -> Callable[[Bench], list[Table]]:
    """The function of a work."""
    measure: Callable[[Bench], list[Table]] = import_module(f"benchmarks.works.{name}").measure
    return measure
