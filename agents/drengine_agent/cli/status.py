"""`drengine-agent status`: how the agent stands."""

from __future__ import annotations

import typer

from drengine_agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, ask_agent
from drengine_agent.cli.standing import show_standing

app = typer.Typer(add_completion=False)


@app.command()
def status(config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
    """Show how the running agent stands."""
    show_standing(ask_agent(config, "status"), json)
