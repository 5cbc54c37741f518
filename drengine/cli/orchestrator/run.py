"""`drengine orchestrator`: the daemon that watches, drills on schedule and answers programs."""

from __future__ import annotations

import asyncio

import typer

from drengine.cli.engine import ConfigOption, EngineStoreOption, ExportOption, StateOption, load_config
from drengine.console.metrics import serve_metrics
from drengine.console.serve import serve_rest
from drengine.failover.daemon import run_orchestrator
from drengine.telemetry import setup_logging

app = typer.Typer(add_completion=False)


@app.command()
def run(
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    state: StateOption = None,
    export: ExportOption = None,
) -> None:
    """Run the daemon in the foreground until SIGTERM. Failovers need it not: each command works without it."""
    loaded = load_config(config, store, state, export)
    setup_logging(level=loaded.log_level, form=loaded.log_form)
    raise typer.Exit(asyncio.run(run_orchestrator(loaded, (serve_rest, serve_metrics))))
