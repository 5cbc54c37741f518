"""`drengine-agent upgrade`: this file in the installed one's place."""

from __future__ import annotations

from pathlib import Path

import typer

from drengine_agent.cli.common import JsonOption
from drengine_agent.cli.install_options import DryRunOption, RootOption, YesOption
from drengine_agent.install import steps

app = typer.Typer(add_completion=False)


@app.command()
def upgrade(
    root: RootOption = Path("/"), dry_run: DryRunOption = False, yes: YesOption = False, json: JsonOption = False
) -> None:
    """Replace the installed agent by this one and restart it. Tracking goes on in the kernel meanwhile.

    Run it from the new file: `./drengine-agent upgrade`. The doctor speaks first; the configuration stays.
    """
    steps.upgrade(root.absolute(), dry_run=dry_run, yes=yes, json=json)
