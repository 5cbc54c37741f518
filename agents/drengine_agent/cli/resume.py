"""`drengine-agent resume`: ship again."""

from __future__ import annotations

import typer

from drengine_agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, ask_agent
from drengine_agent.cli.standing import show_standing

app = typer.Typer(add_completion=False)


@app.command()
def resume(config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
    """Ship again after `pause`."""
    show_standing(ask_agent(config, "resume"), json)
