"""`drengine-agent example-config`: every option, its meaning and its default."""

from __future__ import annotations

import typer

from drengine.config import example
from drengine_agent.config import AgentConfig

app = typer.Typer(add_completion=False)


@app.command()
def example_config() -> None:
    """Print a configuration file with every option, its meaning and its default."""
    print(example(AgentConfig), end="")
