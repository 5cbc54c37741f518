"""`drengine orchestrator`: the daemon that watches, drills on schedule and answers programs."""

from __future__ import annotations

import asyncio

import typer

from drengine.cli.run_options import EngineOptions
from drengine.console.metrics import serve_metrics
from drengine.console.serve import serve_rest
from drengine.failover.config import load_orchestrator_config
from drengine.failover.daemon import run_orchestrator
from drengine.fleet.rollout import keep_rollouts
from drengine.fleet.telling import keep_policies
from drengine.telemetry import setup_logging
from drengine.terminal.options import grouped

app = typer.Typer(add_completion=False)


@app.command()
@grouped
def run(options: EngineOptions) -> None:
    """Run the daemon in the foreground until SIGTERM. Failovers need it not: each command works without it."""
    loaded = load_orchestrator_config(options.config, options.given())
    setup_logging(level=loaded.log_level, form=loaded.log_form)
    raise typer.Exit(asyncio.run(run_orchestrator(loaded, (serve_rest, serve_metrics, keep_policies, keep_rollouts))))
