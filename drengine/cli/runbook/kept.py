"""`drengine runbook list` and `show`: the runbooks that are kept."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from drengine.cli.common import JsonOption
from drengine.cli.engine import ConfigOption, EngineStoreOption, StateOption, load_config
from drengine.failover.registry import Registry
from drengine.model.clock import SystemClock
from drengine.terminal import emit_json, human_time, note, show_table
from drengine.terminal.output import write_output

app = typer.Typer(add_completion=False)


@app.command("list")
def list_runbooks(
    config: ConfigOption = None, store: EngineStoreOption = None, state: StateOption = None, json: JsonOption = False
) -> None:
    """List the runbooks of which runs were begun, each in its newest version."""
    with _registry(config, store, state) as registry:
        found = registry.runbooks()
    if json:
        emit_json(found)
    elif not found:
        note("no runbook was run yet")
    else:
        rows = [(each.name, each.version[:12], human_time(each.at_ns)[:19]) for each in found]
        show_table(("runbook", "version", "first used"), rows, title="Runbooks")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A runbook's name; `drengine runbook list` lists them.")],
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    state: StateOption = None,
    version: Annotated[str | None, typer.Option("--version", help="A version in full; default: the newest.")] = None,
) -> None:
    """Print a runbook as it was run."""
    with _registry(config, store, state) as registry:
        write_output(registry.runbook(name, version).text)


def _registry(config: Path | None, store: Path | None, state: Path | None) -> closing[Registry]:
    return closing(Registry.open(load_config(config, store, state).registry_url, clock=SystemClock()))
