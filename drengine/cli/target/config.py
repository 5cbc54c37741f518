"""`drengine target check-config` and `example-config`: the target's configuration file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from drengine.cli.chosen import needed, target_file
from drengine.config import example
from drengine.ownership import service_warnings
from drengine.target.config import TargetConfig, load_target_config, open_to_everybody
from drengine.terminal import note
from drengine.transport.tls_check import ANY_ADDRESS, Side, check_files

app = typer.Typer(add_completion=False)


@app.command("check-config")
def check_config(
    config: Annotated[
        Path,
        typer.Argument(
            help="TOML file with the target's options (or as DRENGINE_CONFIG says).",
            default_factory=lambda: None,
            show_default=False,
            callback=needed(target_file),
        ),
    ],
) -> None:
    """Check a configuration file, with the certificates it names, without starting anything."""
    loaded = load_target_config(config, {})
    host = loaded.listen.host
    address = "" if host in ANY_ADDRESS else host
    report = check_files(loaded.tls.files, Side.SERVER, now=time.time(), address=address) if loaded.tls.files else None
    print(f"{config} is valid: store {loaded.store}, agents at {loaded.listen}")
    for line in report.lines() if report else ():
        print(line)
    for line in open_to_everybody(loaded):
        note(f"warning: {line}")
    files = loaded.tls.files.paths if loaded.tls.files else ()
    for line in service_warnings(config, loaded.store, loaded.encryption.key_file, *files):
        note(line)


@app.command("example-config")
def example_config() -> None:
    """Print a commented configuration file with every option."""
    print(example(TargetConfig), end="")
