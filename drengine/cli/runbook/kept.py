"""`drengine runbook list` and `show`: the runbooks that are kept."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from drengine.cli.common import JsonOption
from drengine.cli.run_options import RegistryOptions
from drengine.failover.config import load_orchestrator_config
from drengine.failover.registry import Registry
from drengine.model.clock import SystemClock
from drengine.terminal import emit_json, human_time, note, show_table
from drengine.terminal.options import grouped
from drengine.terminal.output import write_output

app = typer.Typer(add_completion=False)


@app.command("list")
@grouped
def list_runbooks(json: JsonOption = False, *, options: RegistryOptions) -> None:
    """List the runbooks of which runs were begun, each in its newest version."""
    with _registry(options) as registry:
        found = registry.runbooks()
    if json:
        emit_json(found)
    elif not found:
        note("no runbook was run yet")
    else:
        rows = [(each.name, each.version[:12], human_time(each.at_ns)[:19]) for each in found]
        show_table(("runbook", "version", "first used"), rows, title="Runbooks")


@app.command()
@grouped
def show(
    name: Annotated[str, typer.Argument(help="A runbook's name; `drengine runbook list` lists them.")],
    version: Annotated[str | None, typer.Option("--version", help="A version in full; default: the newest.")] = None,
    *,
    options: RegistryOptions,
) -> None:
    """Print a runbook as it was run."""
    with _registry(options) as registry:
        write_output(registry.runbook(name, version).text)


def _registry(options: RegistryOptions) -> closing[Registry]:
    config = load_orchestrator_config(options.config, options.given())
    return closing(Registry.open(config.registry_url, clock=SystemClock()))
