"""The doctor's report as people and machines read it."""

from __future__ import annotations

import os
from typing import Any

from drengine.terminal import is_terminal, show_table
from drengine_agent.doctor.facts import Host
from drengine_agent.doctor.judge import Level, Report

COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


def as_json(host: Host, report: Report) -> dict[str, Any]:
    """The report, and the facts that it rests on."""
    return {
        "ok": report.ok,
        "verdict": report.verdict,
        "tracker": report.tracker,
        "volumes": report.choices,
        "findings": report.findings,
        "facts": host,
    }


def show_report(report: Report) -> None:
    """Print it: a coloured table at a terminal, plain columns elsewhere, then what to do."""
    if is_terminal() and "NO_COLOR" not in os.environ:
        _show_coloured(report)
    else:
        show_table(("", "check", "seen"), [(each.level, each.id, each.seen) for each in report.findings])
    hints = {finding.hint: finding for finding in report.findings if finding.hint}
    if hints:
        print()
    for hint, finding in hints.items():
        print(f"{finding.level:4}  {finding.id}: {hint}")
    print()
    for choice in report.choices:
        print(f"{choice.volume}: tracker {choice.tracker or 'none'}: {choice.why}")
    print(report.verdict)


def _show_coloured(report: Report) -> None:
    from rich.console import Console  # noqa: PLC0415 (rich costs 60 ms, which only terminals pay)
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(header_style="bold cyan")
    for heading in ("", "check", "seen"):
        table.add_column(heading)
    for each in report.findings:
        table.add_row(Text(each.level, style=COLOURS[each.level]), Text(each.id), Text(each.seen))
    Console().print(table)
