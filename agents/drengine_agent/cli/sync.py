"""`drengine-agent sync`: compare everything now."""

from __future__ import annotations

import typer

from drengine_agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, ask_agent
from drengine_agent.cli.standing import show_standing

app = typer.Typer(add_completion=False)


@app.command()
def sync(config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
    """Compare everything with the target now; with tracker `scan`, begin the next scan now."""
    show_standing(ask_agent(config, "sync"), json)
