"""The report of a run, from the registry that holds it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable
from pathlib import Path

from drengine.failover.reading.reader import read_runbook
from drengine.failover.registry import Registry
from drengine.failover.registry.values import Party
from drengine.failover.report.keep import Form, is_kept, keep_report, read_kept
from drengine.failover.report.make import make_report
from drengine.failover.report.page import report_page
from drengine.failover.report.values import Report, Route, report_json
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
    routes = routes_of(registry.parties(), record.sources)
    entries, requests = registry.entries(run), registry.requests(run)
    return make_report(record, book, stored.text, entries, requests, now_ns=now_ns, routes=routes)


async def report_as(registry: Registry, directory: Path, run: str, form: Form, now_ns: int) -> bytes:
    """A run's report, as the run stands now; where the registry can't tell any more, as it was kept.

    Args:
        registry, directory: what knows the run, and where reports are kept.
        run: which.
        form: as what.
        now_ns: wall clock.

    Raises:
        DrengineError: UNKNOWN_RUN, UNKNOWN_RUNBOOK, REGISTRY_UNAVAILABLE, where none is kept; REPORT_UNAVAILABLE.
    """
    try:
        report = await asyncio.to_thread(report_of, registry, run, now_ns)
    except DrengineError:
        if not await asyncio.to_thread(is_kept, directory, run, form):
            raise
        return await read_kept(directory, run, form)
    return report_json(report) if form is Form.JSON else report_page(report).encode()


def routes_of(parties: Iterable[Party], sources: Collection[str]) -> list[Route]:
    """What the sources' agents counted by network since they started: ``bytes_by_network`` of their reports' details,
    a pair of bytes received and sent for each. Whatever else stands there is no count and is left out.
    """
    found: dict[str, tuple[int, int]] = {}
    for party in parties:
        counted = party.report.details.get("bytes_by_network") if party.report and party.name in sources else None
        for network, counts in counted.items() if isinstance(counted, dict) else ():
            match counts:
                case [int(received), int(sent)]:
                    before = found.get(network, (0, 0))
                    found[network] = (before[0] + received, before[1] + sent)
                case _:
                    continue
    return [Route(network=name, received_bytes=each[0], sent_bytes=each[1]) for name, each in sorted(found.items())]


async def keep_report_of(registry: Registry, directory: Path, run: str, now_ns: int) -> Path | None:
    """Keep the report of a run that ended or stopped; None, and a line in the log, where that is not possible: what
    the run did is not undone by a full disk.
    """
    try:
        return await keep_report(directory, await asyncio.to_thread(report_of, registry, run, now_ns))
    except DrengineError as error:
        log.error("no report of %s was kept: %s", run, error)  # noqa: TRY400
        return None
