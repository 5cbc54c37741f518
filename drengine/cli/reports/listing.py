"""`drengine reports list`: the reports that are kept."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from drengine.cli.common import JsonOption
from drengine.cli.run_options import RegistryOptions
from drengine.failover.config import load_orchestrator_config
from drengine.failover.report.keep import summaries
from drengine.failover.report.values import ReportSummary
from drengine.terminal import emit_json, human_duration, human_time, note, show_table
from drengine.terminal.options import grouped

app = typer.Typer(add_completion=False)


@app.command("list")
@grouped
def list_reports(
    limit: Annotated[int, typer.Option("--limit", min=1, max=10000, help="How many at most, newest first.")] = 30,
    json: JsonOption = False,
    *,
    options: RegistryOptions,
) -> None:
    """List the reports that are kept, newest first."""
    directory = load_orchestrator_config(options.config, options.given()).reports
    found = asyncio.run(summaries(directory, limit, lambda error: note(f"{error.message} [{error.kind.id}]")))
    if json:
        emit_json(found)
    elif not found:
        note("no report is kept yet: each run leaves one when it ends")
    else:
        heads = ("run", "verdict", "warnings", "RTO", "RPO", "made")
        show_table(heads, [_row(each) for each in found], title="Reports")


def _row(report: ReportSummary) -> tuple[str, ...]:
    warnings = str(len(report.warnings) or "")
    measured = (human_duration(each) if each is not None else "" for each in (report.rto_seconds, report.rpo_seconds))
    return report.run, report.verdict, warnings, *measured, human_time(report.made_ns)[:19]
