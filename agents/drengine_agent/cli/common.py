"""What the agent's commands share: the configuration's place, output for machines, asking the running agent."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from drengine.config import parse_duration
from drengine_agent.daemon.client import ask

DEFAULT_CONFIG = Path("/etc/drengine/agent.toml")

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The configuration file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def ask_agent(config: Path, command: str, **arguments: Any) -> Any:
    """Ask the agent that runs with this configuration. Most commands go through here: their `--help` reads no options.

    Raises:
        DrengineError: AGENT_NOT_RUNNING, or what the agent answered.
    """
    from drengine_agent.config import load_config  # noqa: PLC0415 - as it says

    return ask(load_config(config).control_socket, command, **arguments)


def named_volumes(texts: Iterable[str]) -> dict[str, Path]:
    """Volumes by name, each written NAME=PATH.

    Raises:
        BadParameter: one is written otherwise, or a name comes twice.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise typer.BadParameter(f"{text!r} is not NAME=PATH")
        if name in found:
            raise typer.BadParameter(f"two volumes are named {name}")
        found[name] = Path(path).absolute()
    return found


def typed_seconds(text: str) -> float:
    """The duration after --wait.

    Raises:
        BadParameter: it is none.
    """
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(f"--wait {text!r}: {error}") from error
