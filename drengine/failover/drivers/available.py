"""Which launch drivers there are: ours, and those that installed packages bring as entry points."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points

from drengine.failover.drivers.driver import LaunchDriver
from drengine.failover.steps.errors import LAUNCH_SETTINGS
from drengine.model.errors import DrengineError

GROUP = "drengine.launch_drivers"
OURS: Mapping[str, str] = {
    "command": "drengine.failover.drivers.command:CommandDriver",
    "qemu": "drengine.failover.drivers.qemu:QemuDriver",
    "standby": "drengine.failover.drivers.standby:StandbyDriver",
}
"""Loaded by name, so that a checkout that was never installed has them too."""


def available_drivers() -> dict[str, str]:
    """Names and where they come from. Ours can't be replaced by a package that happens to be installed."""
    return {each.name: each.value for each in entry_points(group=GROUP)} | dict(OURS)


def load_driver(name: str) -> LaunchDriver:
    """The driver of that name.

    Raises:
        DrengineError: LAUNCH_SETTINGS when there is none, or it can't be loaded.
    """
    known = available_drivers()
    if name not in known:
        raise DrengineError(
            LAUNCH_SETTINGS, f"there is no launch driver {name!r}; there are {', '.join(sorted(known))}"
        )
    module, _, attribute = known[name].partition(":")
    try:
        driver: LaunchDriver = getattr(import_module(module), attribute)()
    except Exception as error:  # third-party code may raise anything
        raise DrengineError(LAUNCH_SETTINGS, f"launch driver {name!r} can't be loaded: {error}") from error
    return driver


def load_drivers() -> dict[str, LaunchDriver]:
    """Every driver that can be loaded; a runbook that names another is told so when it is declared."""
    found: dict[str, LaunchDriver] = {}
    for name in available_drivers():
        try:
            found[name] = load_driver(name)
        except DrengineError:
            continue
    return found
