"""What a command takes from the file that DRENGINE_CONFIG names, where no option and no other variable says it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from drengine.config.chosen import CONFIG_VARIABLE, chosen_file, chosen_store, chosen_values
from drengine.config.options import values_in
from drengine.failover.config import OrchestratorConfig
from drengine.target.config import TargetConfig

STORE_HELP = f"The store's directory (or DRENGINE_STORE, or as {CONFIG_VARIABLE} says)."


def target_file(given: Path | None) -> Path | None:
    """The target's file."""
    return given or chosen_file(TargetConfig, "target.toml")


def orchestrator_file(given: Path | None) -> Path | None:
    """The orchestrator's file."""
    return given or chosen_file(OrchestratorConfig, "orchestrator.toml")


def store_of(given: Path | None) -> Path | None:
    """The store's directory; only where the command's own file does not say it."""
    return given or chosen_store()


def log_directory(given: Path | None) -> Path | None:
    """Whose audit log is meant: the orchestrator's, if the file is its own, or else the store's."""
    values = {} if given else chosen_values()
    place = values.get("state", values.get("store"))
    return given or (Path(place) if isinstance(place, str) else None)


def ca_directory(given: Path | None) -> Path | None:
    """The CA's directory, as the orchestrator's file says it in [fleet]."""
    file = None if given else chosen_file(OrchestratorConfig, "orchestrator.toml")
    place = values_in(file).get("fleet", {}) if file else {}
    return given or (Path(place["ca"]) if isinstance(place, dict) and isinstance(place.get("ca"), str) else None)


TargetConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="TOML file with the target's options (or as DRENGINE_CONFIG says).",
        callback=target_file,
    ),
]


def needed(find: Callable[[Path | None], Path | None]) -> Callable[..., Path | None]:
    """A callback for a parameter that must have a value in the end."""

    def look(context: typer.Context, parameter: typer.CallbackParam, given: Path | None) -> Path | None:
        if context.resilient_parsing:
            return given
        found = find(given)
        if found is None:
            raise typer.BadParameter(f"it is missing, and {CONFIG_VARIABLE} does not say it", param=parameter)
        return found

    return look
