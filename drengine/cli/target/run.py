"""`drengine target`: the daemon that receives, keeps and serves replicas."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from drengine.cli.chosen import TargetConfigOption, store_of
from drengine.target.config import load_target_config
from drengine.target.daemon import run_target
from drengine.telemetry import setup_logging

app = typer.Typer(add_completion=False)


@app.command()
def run(
    config: TargetConfigOption = None,
    store: Annotated[Path | None, typer.Option("--store", "-s", envvar="DRENGINE_STORE", help="The store.")] = None,
    listen: Annotated[str | None, typer.Option("--listen", help="HOST:PORT for agents.")] = None,
    nbd_socket: Annotated[Path | None, typer.Option("--nbd-socket", help="Unix socket to serve points on.")] = None,
    nbd_listen: Annotated[str | None, typer.Option("--nbd-listen", help="HOST:PORT to serve points on.")] = None,
    metrics: Annotated[str | None, typer.Option("--metrics", help="HOST:PORT of the Prometheus endpoint.")] = None,
) -> None:
    """Run the daemon in the foreground until SIGTERM.

    The store must be there: `drengine target init` makes one. What stands on the command line wins over the file.
    """
    store = store if config else store_of(store)
    given = {"store": store, "listen": listen, "nbd_socket": nbd_socket, "nbd_listen": nbd_listen, "metrics": metrics}
    loaded = load_target_config(config, {name: str(value) for name, value in given.items() if value is not None})
    setup_logging(level=loaded.log_level, form=loaded.log_form)
    raise typer.Exit(asyncio.run(run_target(loaded)))
