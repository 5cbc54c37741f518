"""The doctor's report as people and machines read it."""

from __future__ import annotations

import os
from typing import Any

from drengine.terminal import show_table
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
    styles = () if "NO_COLOR" in os.environ else [COLOURS[each.level] for each in report.findings]
    show_table(("", "check", "seen"), [(each.level, each.id, each.seen) for each in report.findings], styles=styles)
    hints = {finding.hint: finding for finding in report.findings if finding.hint}
    if hints:
        print()
    for hint, finding in hints.items():
        print(f"{finding.level:4}  {finding.id}: {hint}")
    print()
    for choice in report.choices:
        print(f"{choice.volume}: tracker {choice.tracker or 'none'}: {choice.why}")
    print(report.verdict)
