"""`drengine target`: the daemon that receives, keeps and serves replicas."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from drengine.terminal import app as make_app

if TYPE_CHECKING:
    from drengine.target.config import TargetConfig

app = make_app("target", "Receive, keep and serve replicas.")

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="TOML file with the target's options.")]


@app.command()
def run(
    config: ConfigOption = None,
    store: Annotated[Path | None, typer.Option("--store", "-s", envvar="DRENGINE_STORE", help="The store.")] = None,
    listen: Annotated[str | None, typer.Option("--listen", help="HOST:PORT for agents.")] = None,
    nbd_socket: Annotated[Path | None, typer.Option("--nbd-socket", help="Unix socket to serve points on.")] = None,
    nbd_listen: Annotated[str | None, typer.Option("--nbd-listen", help="HOST:PORT to serve points on.")] = None,
    metrics: Annotated[str | None, typer.Option("--metrics", help="HOST:PORT of the Prometheus endpoint.")] = None,
) -> None:
    """Run the daemon in the foreground until SIGTERM; a new store is made in an empty directory.

    What stands on the command line wins over the file.
    """
    from drengine.target.daemon import run_target  # noqa: PLC0415
    from drengine.telemetry import setup_logging  # noqa: PLC0415

    loaded = _load(config, store, listen=listen, nbd_socket=nbd_socket, nbd_listen=nbd_listen, metrics=metrics)
    setup_logging(level=loaded.log_level, form=loaded.log_form)
    raise typer.Exit(asyncio.run(run_target(loaded)))


@app.command("check-config")
def check_config(
    config: Annotated[Path, typer.Argument(help="TOML file with the target's options.")],
) -> None:
    """Check a configuration file, with the certificates it names, without starting anything."""
    from drengine.transport import server_context  # noqa: PLC0415

    loaded = _load(config, None)
    if loaded.tls.files:
        server_context(loaded.tls.files)
    print(f"{config} is valid: store {loaded.store}, agents at {loaded.listen}")


@app.command("example-config")
def example_config() -> None:
    """Print a commented configuration file with every option."""
    from drengine.config import example  # noqa: PLC0415
    from drengine.target.config import TargetConfig  # noqa: PLC0415

    print(example(TargetConfig), end="")


def _load(config: Path | None, store: Path | None, **options: str | Path | None) -> TargetConfig:
    from drengine.target.config import load_target_config  # noqa: PLC0415

    given = {**options, "store": store}
    return load_target_config(config, {name: str(value) for name, value in given.items() if value is not None})
