"""`drengine-agent standby run`: the recovery host in the foreground."""

from __future__ import annotations

import asyncio

import typer

from drengine.telemetry.logs import setup_logging
from drengine_agent.cli.standby.options import DEFAULT_STANDBY_CONFIG, StandbyConfigOption
from drengine_agent.standby.config import load_standby_config
from drengine_agent.standby.host import serve_standby

app = typer.Typer(add_completion=False)


@app.command()
def run(config: StandbyConfigOption = DEFAULT_STANDBY_CONFIG) -> None:
    """Be a recovery host, in the foreground, until SIGTERM: attach, mount and start workloads when told to.

    Workloads that are up stay up when this command ends; started again it finds them.
    """
    options = load_standby_config(config)
    setup_logging(level=options.log_level, form=options.log_form)
    asyncio.run(serve_standby(options))
