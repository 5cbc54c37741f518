"""`drengine runbook validate`: what is wrong with a runbook."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from drengine.cli.common import JsonOption, open_store
from drengine.cli.run_options import StoreOptions
from drengine.failover.answers import validation
from drengine.failover.config import load_orchestrator_config
from drengine.failover.drivers.available import load_drivers
from drengine.failover.reading.reader import examine, read_runbook_text
from drengine.failover.runbook.errors import BAD_RUNBOOK
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
    options: StoreOptions,
) -> None:
    """Say what is wrong with a runbook: each mistake with line, column and hint.

    Ends with 103 if it has mistakes. With a store or configuration, sources that do not replicate yet are named, too.
    """
    names = None
    if options.config is not None or options.store is not None:
        config = load_orchestrator_config(options.config, options.given())
        with open_store(config.store, read_only=True) as opened:
            names = [each.name for each in opened.sources()]
    examined = examine(read_runbook_text(file), sources=names, drivers=load_drivers())
    valid = examined.runbook is not None
    if json:
        emit_json({"file": str(file)} | asdict(validation(examined)))
    else:
        for finding in examined.findings:
            print(printable(finding.shown(str(file))))
        note(f"{file}: {'can be run' if valid else 'can not be run'}")
    if not valid:
        raise typer.Exit(BAD_RUNBOOK.exit_code)
