"""`drengine orchestrator check-config` and `example-config`: the orchestrator's configuration file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from drengine.cli.chosen import needed, orchestrator_file
from drengine.config import example
from drengine.failover.config import OrchestratorConfig, load_orchestrator_config
from drengine.ownership import service_warnings
from drengine.terminal import note
from drengine.transport.tls_check import Side, check_files

app = typer.Typer(add_completion=False)


@app.command("check-config")
def check_config(
    config: Annotated[
        Path,
        typer.Argument(
            help="TOML file with the orchestrator's options (or as DRENGINE_CONFIG says).",
            default_factory=lambda: None,
            show_default=False,
            callback=needed(orchestrator_file),
        ),
    ],
) -> None:
    """Check a configuration file, with the certificates it names, without starting anything."""
    loaded = load_orchestrator_config(config, {})
    files = loaded.broker.tls_files("[broker]")
    report = check_files(files, Side.CLIENT, now=time.time()) if files else None
    print(f"{config} is valid: store {loaded.store}, broker {loaded.broker.address or 'none'}")
    for line in report.lines() if report else ():
        print(line)
    for line in service_warnings(config, loaded.store, loaded.encryption.key_file, *(files.paths if files else ())):
        note(line)


@app.command("example-config")
def example_config() -> None:
    """Print a commented configuration file with every option."""
    print(example(OrchestratorConfig), end="")
