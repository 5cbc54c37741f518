"""The report of a run, from the registry that holds it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from drengine.failover.registry import Registry
from drengine.failover.report.keep import keep_report
from drengine.failover.report.make import make_report
from drengine.failover.report.values import Report
from drengine.failover.runbook.reader import read_runbook
from drengine.model.errors import DrengineError

log = logging.getLogger("drengine.failover")


def report_of(registry: Registry, run: str, now_ns: int) -> Report:
    """As the run stands now.

    Raises:
        DrengineError: UNKNOWN_RUN, UNKNOWN_RUNBOOK, REGISTRY_UNAVAILABLE.
    """
    record = registry.run(run)
    stored = registry.runbook(record.runbook, record.version)
    book = read_runbook(stored.text, where=f"{stored.name}@{stored.version[:12]}")
    return make_report(record, book, stored.text, registry.entries(run), registry.requests(run), now_ns=now_ns)


async def keep_report_of(registry: Registry, directory: Path, run: str, now_ns: int) -> Path | None:
    """Keep the report of a run that ended or stopped; None, and a line in the log, where that is not possible: what
    the run did is not undone by a full disk.
    """
    try:
        return await keep_report(directory, await asyncio.to_thread(report_of, registry, run, now_ns))
    except DrengineError as error:
        log.error("no report of %s was kept: %s", run, error)  # noqa: TRY400
        return None
