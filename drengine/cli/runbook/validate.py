"""`drengine runbook validate`: what is wrong with a runbook."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from drengine.cli.carrying import ask
from drengine.cli.common import JsonOption
from drengine.cli.ready import show_checks
from drengine.cli.run_options import PlanOptions
from drengine.failover.answers import validation
from drengine.failover.drivers.available import load_drivers
from drengine.failover.readiness import Checked
from drengine.failover.reading.reader import examine, read_runbook_text
from drengine.failover.runbook.errors import BAD_RUNBOOK
from drengine.failover.runbook.values import Mode
from drengine.model.errors import DrengineError
from drengine.terminal import emit_json, note
from drengine.terminal.options import grouped
from drengine.terminal.streams import printable

app = typer.Typer(add_completion=False)


@app.command()
@grouped
def validate(
    file: Annotated[Path, typer.Argument(help="The runbook's file.")],
    json: JsonOption = False,
    *,
    options: PlanOptions,
) -> None:
    """Say what is wrong with a runbook: each mistake with line, column and hint.

    Ends with 103 if it has mistakes. With a store or configuration, the checks of `drengine ready` that do not pass
    follow.
    """
    examined = examine(read_runbook_text(file), drivers=load_drivers())
    valid = examined.runbook is not None
    checks = _looked(file, options) if valid else []
    if json:
        emit_json({"file": str(file), **asdict(validation(examined)), "checks": checks})
    else:
        for finding in examined.findings:
            print(printable(finding.shown(str(file))))
        if checks:
            show_checks(checks)
        note(f"{file}: {'can be run' if valid else 'can not be run'}")
    if not valid:
        raise typer.Exit(BAD_RUNBOOK.exit_code)


def _looked(file: Path, options: PlanOptions) -> list[Checked]:
    """What does not pass here and now; nothing where nothing says where to look, or it can't be looked at."""
    if options.config is None and options.store is None:
        return []
    try:
        found = ask(options, lambda orders: orders.ready(Mode.FAILOVER, file), here=True)
    except DrengineError as error:
        note(f"what it needs was not looked at: {error.message}")
        return []
    return [each for each in found.checks if not each.ok]
