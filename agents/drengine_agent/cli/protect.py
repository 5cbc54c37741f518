"""`drengine-agent protect`: write a configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from drengine.model.errors import DrengineError
from drengine.terminal import note
from drengine_agent.capture.backing import WEAK_HINT
from drengine_agent.cli.common import DEFAULT_CONFIG, ConfigOption, named_volumes
from drengine_agent.doctor.gather import volume_at
from drengine_agent.errors import CONFIG_EXISTS
from drengine_agent.install.configuration import configuration_text

app = typer.Typer(add_completion=False)


@app.command()
def protect(
    target: Annotated[str, typer.Option(help="The target's HOST:PORT; of several targets of one store, with commas.")],
    source: Annotated[str, typer.Option(help="This server's name at the target.")],
    volume: Annotated[list[str], typer.Option(help="NAME=PATH; once for each volume.")],
    tracker: Annotated[str, typer.Option(help="nbd or scan.")] = "nbd",
    listen: Annotated[str, typer.Option(help="For nbd: unix:PATH or HOST:PORT where the volumes are served.")] = "",
    state_directory: Annotated[Path | None, typer.Option(help="Where the agent keeps its journal and indexes.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Write a configuration file; `run` then protects these volumes. Nothing is served or changed yet."""
    volumes = named_volumes(volume)
    values: dict[str, Any] = {"source": source, "target": target, "tracker": tracker}
    values |= {"state_directory": str(state_directory.absolute())} if state_directory else {}
    values |= {"nbd": {"listen": listen}} if listen else {}
    values["volume"] = [{"name": name, "path": str(path)} for name, path in volumes.items()]
    text = configuration_text(values)
    try:
        with config.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise DrengineError(CONFIG_EXISTS, f"{config} is there already") from error
    except OSError as error:
        raise DrengineError(CONFIG_EXISTS, f"{config}: {error.strerror}", hint="Name another file.") from error
    for name, path in volumes.items():
        if volume_at(name, path).weak:
            note(f"{name}: nothing tells {path} from another disk. {WEAK_HINT}")
    note(f"wrote {config}; start with: drengine-agent run --config {config}")
