"""`drengine-agent uninstall`: everything away."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from drengine_agent.cli.common import JsonOption
from drengine_agent.cli.install_options import DryRunOption, RootOption, YesOption
from drengine_agent.install import steps

app = typer.Typer(add_completion=False)


@app.command()
def uninstall(
    purge: Annotated[bool, typer.Option(help="Also a configuration or unit that somebody changed.")] = False,
    root: RootOption = Path("/"),
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Stop the agent and remove it: service, program, tracking in the kernel, state and configuration.

    A configuration or unit that somebody changed since is kept, and said so, without --purge. The replica at the
    target stays.
    """
    steps.uninstall(root.absolute(), purge=purge, dry_run=dry_run, yes=yes, json=json)
