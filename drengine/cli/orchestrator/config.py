"""`drengine orchestrator check-config` and `example-config`: the orchestrator's configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from drengine.config import example
from drengine.failover.config import OrchestratorConfig, load_orchestrator_config

app = typer.Typer(add_completion=False)


@app.command("check-config")
def check_config(config: Annotated[Path, typer.Argument(help="TOML file with the orchestrator's options.")]) -> None:
    """Check a configuration file, with the certificates it names, without starting anything."""
    loaded = load_orchestrator_config(config, {})
    loaded.broker.tls_context()
    print(f"{config} is valid: store {loaded.store}, broker {loaded.broker.address or 'none'}")


@app.command("example-config")
def example_config() -> None:
    """Print a commented configuration file with every option."""
    print(example(OrchestratorConfig), end="")
