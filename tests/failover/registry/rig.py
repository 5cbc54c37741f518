"""Runs for the registries under test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drengine.failover.run import RunRecord
from drengine.failover.runbook.values import Mode


def run_named(id: str, *sources: str, options: Mapping[str, Any] | None = None) -> RunRecord:
    return RunRecord(
        id=id,
        mode=Mode.DRILL,
        runbook="shop",
        version="v",
        sources=sources,
        started_by="ann",
        created_ns=10**18,
        options=options or {},
    )
