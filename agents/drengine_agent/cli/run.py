"""`drengine-agent run`: the agent in the foreground."""

from __future__ import annotations

import asyncio

import typer

from drengine.process.memory import keep_freed_memory
from drengine.telemetry.logs import setup_logging
from drengine_agent.cli.common import DEFAULT_CONFIG, ConfigOption
from drengine_agent.config import load_config
from drengine_agent.daemon.main import serve

app = typer.Typer(add_completion=False)


@app.command()
def run(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run the agent in the foreground, until SIGTERM."""
    options = load_config(config)
    keep_freed_memory()
    setup_logging(level=options.log_level, form=options.log_form)
    asyncio.run(serve(options, config))
