"""`drengine runbook schema`: the JSON Schema of runbooks."""

from __future__ import annotations

import typer

from drengine.failover.reading.schema import schema_text
from drengine.terminal.output import write_output

app = typer.Typer(add_completion=False)


@app.command()
def schema() -> None:
    """Print the JSON Schema of runbooks, by which editors complete them."""
    write_output(schema_text())
