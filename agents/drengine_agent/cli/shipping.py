"""`drengine-agent pause`, `resume` and `sync`: whether the agent ships, and comparing everything."""

from __future__ import annotations

import typer

from drengine_agent.cli.common import DEFAULT_CONFIG, ConfigOption, JsonOption, ask_agent
from drengine_agent.cli.standing import show_standing

app = typer.Typer(add_completion=False)


@app.command()
def pause(config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
    """Stop shipping until `resume`, also over restarts. Changes are still captured."""
    show_standing(ask_agent(config, "pause"), json)


@app.command()
def resume(config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
    """Ship again after `pause`."""
    show_standing(ask_agent(config, "resume"), json)


@app.command()
def sync(config: ConfigOption = DEFAULT_CONFIG, json: JsonOption = False) -> None:
    """Compare everything with the target now; with tracker `scan`, begin the next scan now."""
    show_standing(ask_agent(config, "sync"), json)
