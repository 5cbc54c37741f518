"""`drengine target check-config` and `example-config`: the target's configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from drengine.config import example
from drengine.target.config import TargetConfig, load_target_config
from drengine.transport.tls import server_context

app = typer.Typer(add_completion=False)


@app.command("check-config")
def check_config(
    config: Annotated[Path, typer.Argument(help="TOML file with the target's options.")],
) -> None:
    """Check a configuration file, with the certificates it names, without starting anything."""
    loaded = load_target_config(config, {})
    if loaded.tls.files:
        server_context(loaded.tls.files)
    print(f"{config} is valid: store {loaded.store}, agents at {loaded.listen}")


@app.command("example-config")
def example_config() -> None:
    """Print a commented configuration file with every option."""
    print(example(TargetConfig), end="")
