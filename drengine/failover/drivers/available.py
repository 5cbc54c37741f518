"""Which launch drivers there are: ours, and those that installed packages bring as entry points."""

from __future__ import annotations

from functools import cache

from drengine.failover.drivers.driver import KnowsMachine, LaunchDriver
from drengine.failover.drivers.errors import LAUNCH_SETTINGS
from drengine.model.errors import DrengineError
from drengine.plugins import Plugins

DRIVERS = Plugins(
    "drengine.launch_drivers",
    "launch driver",
    {
        "command": "drengine.failover.drivers.command:CommandDriver",
        "ec2": "drengine.failover.drivers.ec2.driver:Ec2Driver",
        "iscsi": "drengine.failover.drivers.iscsi:IscsiDriver",
        "qemu": "drengine.failover.drivers.qemu.driver:QemuDriver",
        "standby": "drengine.failover.drivers.standby:StandbyDriver",
    },
    LAUNCH_SETTINGS,
)


def available_drivers() -> dict[str, str]:
    """Names and where they come from."""
    return DRIVERS.available()


def load_driver(name: str) -> LaunchDriver:
    """The driver of that name.

    Raises:
        DrengineError: LAUNCH_SETTINGS when there is none, or it can't be loaded.
    """
    make = DRIVERS.load(name)
    try:
        driver: LaunchDriver = make()
    except Exception as error:  # third-party code may raise anything
        raise DrengineError(LAUNCH_SETTINGS, f"launch driver {name!r} can't be loaded: {error}") from error
    return driver


@cache
def knows_machine(name: str) -> bool:
    """Whether the driver of that name boots disks on a machine of its own making; one that can't be loaded does not."""
    try:
        return isinstance(load_driver(name), KnowsMachine)
    except DrengineError:
        return False


def load_drivers() -> dict[str, LaunchDriver]:
    """Every driver that can be loaded; a runbook that names another is told so when it is declared."""
    found: dict[str, LaunchDriver] = {}
    for name in available_drivers():
        try:
            found[name] = load_driver(name)
        except DrengineError:
            continue
    return found
