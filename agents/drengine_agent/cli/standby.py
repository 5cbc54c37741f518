"""`drengine-agent standby`: this machine as a recovery host."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from drengine.config import example
from drengine.telemetry.logs import setup_logging
from drengine_agent.cli.common import ConfigOption
from drengine_agent.standby.config import StandbyConfig, load_standby_config
from drengine_agent.standby.host import serve_standby

app = typer.Typer(add_completion=False)

DEFAULT_STANDBY_CONFIG = Path("/etc/drengine/standby.toml")


@app.command()
def standby(
    config: ConfigOption = DEFAULT_STANDBY_CONFIG,
    show_example: Annotated[bool, typer.Option("--example", help="Print an example configuration and end.")] = False,
) -> None:
    """Be a recovery host, in the foreground, until SIGTERM: attach, mount and start workloads when told to.

    Workloads that are up stay up when this command ends; started again it finds them.
    """
    if show_example:
        print(example(StandbyConfig), end="")
        return
    options = load_standby_config(config)
    setup_logging(level=options.log_level, form=options.log_form)
    asyncio.run(serve_standby(options))
