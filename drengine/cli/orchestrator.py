"""`drengine orchestrator`: the daemon that watches, drills on schedule and answers programs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from drengine.cli.engine import ConfigOption, EngineStoreOption, ExportOption, StateOption, load_config
from drengine.terminal import app as make_app

app = make_app("orchestrator", "Watch the parties and drill on schedule, when nobody types a command.")


@app.command()
def run(
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    state: StateOption = None,
    export: ExportOption = None,
) -> None:
    """Run the daemon in the foreground until SIGTERM. Failovers need it not: each command works without it."""
    from drengine.console.metrics import serve_metrics  # noqa: PLC0415
    from drengine.console.serve import serve_rest  # noqa: PLC0415
    from drengine.failover.daemon import run_orchestrator  # noqa: PLC0415
    from drengine.telemetry import setup_logging  # noqa: PLC0415

    loaded = load_config(config, store, state, export)
    setup_logging(level=loaded.log_level, form=loaded.log_form)
    raise typer.Exit(asyncio.run(run_orchestrator(loaded, (serve_rest, serve_metrics))))


@app.command("check-config")
def check_config(config: Annotated[Path, typer.Argument(help="TOML file with the orchestrator's options.")]) -> None:
    """Check a configuration file, with the certificates it names, without starting anything."""
    loaded = load_config(config)
    loaded.broker.tls_context()
    print(f"{config} is valid: store {loaded.store}, broker {loaded.broker.address or 'none'}")


@app.command("example-config")
def example_config() -> None:
    """Print a commented configuration file with every option."""
    from drengine.config import example  # noqa: PLC0415
    from drengine.failover.config import OrchestratorConfig  # noqa: PLC0415

    print(example(OrchestratorConfig), end="")
