"""Where reports are kept: two files of a run, ``RUN.json`` and ``RUN.html``, each old or new after any crash."""

from __future__ import annotations

import asyncio
import enum
import re
from collections.abc import Callable
from pathlib import Path

import aiofiles
import msgspec

from drengine.durable import replace_durably
from drengine.failover.report.errors import REPORT_UNAVAILABLE
from drengine.failover.report.page import report_page
from drengine.failover.report.values import Report, ReportSummary, report_json
from drengine.failover.run import RunRecord
from drengine.model.errors import ACCESS_DENIED, DrengineError
from drengine.ownership import barrier, make_directory

REPORT_BYTES_MAX = 256 << 20
_RUN = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,120}", re.ASCII)


class Form(enum.StrEnum):
    """What a report can be handed on as."""

    HTML = "html"
    JSON = "json"


async def keep_report(directory: Path, report: Report) -> Path:
    """Write both forms, over older ones of the same run; gives the page's path.

    Raises:
        DrengineError: REPORT_UNAVAILABLE.
    """
    page = report_path(directory, report.run, Form.HTML)
    try:
        await asyncio.to_thread(lambda: make_directory(directory, mode=0o700))
        await _keep(report_path(directory, report.run, Form.JSON), report_json(report))
        await _keep(page, report_page(report).encode())
    except OSError as error:
        raise DrengineError(REPORT_UNAVAILABLE, f"report of {report.run}: {error.strerror or error}") from error
    return page


async def read_kept(directory: Path, run: str, form: Form) -> bytes:
    """A report as it was kept.

    Raises:
        DrengineError: REPORT_UNAVAILABLE.
    """
    try:
        async with aiofiles.open(report_path(directory, run, form), "rb") as file:
            return await file.read(REPORT_BYTES_MAX)
    except OSError as error:
        raise DrengineError(REPORT_UNAVAILABLE, f"there is no report of {run[:120]!r}: {error.strerror}") from error


def kept_reports(directory: Path) -> list[str]:
    """Runs of which a report is kept, newest first.

    Raises:
        DrengineError: ACCESS_DENIED, REPORT_UNAVAILABLE: the directory is there and can't be read.
    """
    try:
        found = {path.stem for path in directory.iterdir() if path.suffix == ".json" and _RUN.fullmatch(path.stem)}
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise DrengineError(ACCESS_DENIED, barrier(directory)) from error
    except OSError as error:
        raise DrengineError(REPORT_UNAVAILABLE, f"{directory}: {error.strerror}") from error
    return sorted(found, reverse=True)


async def summaries(directory: Path, limit: int, unreadable: Callable[[DrengineError], None]) -> list[ReportSummary]:
    """The reports that are kept, newest first; `unreadable` is told of those that can't be read, which are left out.

    Raises:
        DrengineError: ACCESS_DENIED, REPORT_UNAVAILABLE: the directory is there and can't be read.
    """
    found = []
    for run in (await asyncio.to_thread(kept_reports, directory))[:limit]:
        try:
            found.append(_short(await summary(directory, run), directory))
        except DrengineError as error:
            unreadable(error)
    return found


async def summary(directory: Path, run: str) -> Report:
    """A kept report as values.

    Raises:
        DrengineError: REPORT_UNAVAILABLE, also when it is damaged.
    """
    try:
        return msgspec.json.decode(await read_kept(directory, run, Form.JSON), type=Report)
    except msgspec.MsgspecError as error:
        raise DrengineError(REPORT_UNAVAILABLE, f"the report of {run} is damaged: {error}") from error


def _short(report: Report, directory: Path) -> ReportSummary:
    measured = {each.name: each.measured_seconds for each in report.objectives}
    return ReportSummary(
        run=report.run,
        verdict=report.verdict,
        good=report.good,
        warnings=[each.text for each in report.warnings],
        rto_seconds=measured.get("RTO"),
        rpo_seconds=measured.get("RPO"),
        made_ns=report.made_ns,
        page=str(report_path(directory, report.run, Form.HTML)),
    )


def is_kept(directory: Path, run: str, form: Form) -> bool:
    """Whether there is such a report; there is none of what names no run."""
    try:
        return report_path(directory, run, form).exists()
    except DrengineError:
        return False


def is_missing(directory: Path, run: RunRecord) -> bool:
    """Whether no report of how a run ended, or stopped, is kept here."""
    try:
        kept_ns = report_path(directory, run.id, Form.HTML).stat().st_mtime_ns
    except OSError:
        return True
    return kept_ns < run.finished_ns


def report_path(directory: Path, run: str, form: Form) -> Path:
    """A report's file; a run's name can't lead out of the directory (fault 53).

    Raises:
        DrengineError: REPORT_UNAVAILABLE.
    """
    if not _RUN.fullmatch(run) or ".." in run:
        raise DrengineError(REPORT_UNAVAILABLE, f"{run[:120]!r} names no run")
    return directory / f"{run}.{form}"


async def _keep(path: Path, content: bytes) -> None:
    await asyncio.to_thread(replace_durably, path, content, mode=0o600)
