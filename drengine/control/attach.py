"""What ATTACH carries to a recovery host: which disks, and what to make of them."""

from __future__ import annotations

import msgspec


class StandbyMount(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file system of a disk, or of one of its partitions, and where it is mounted."""

    volume: str
    at: str
    partition: int = 0
    options: list[str] = []


class StandbySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the launch driver `standby` in a runbook.

    Attributes:
        attach: `fuse` or `kernel`.
        mounts: in this order; undone in reverse.
        start, stop: commands that return (systemctl start ...).
        health: exit status 0 when it works; asked until it does.
        network: in a drill: `none` runs the commands in a network with only loopback, `host` in this host's own.
        details: told to later steps as ${SOURCE.KEY}.
    """

    attach: str = "fuse"
    mounts: list[StandbyMount] = []
    start: list[str] = []
    stop: list[str] = []
    health: list[str] = []
    network: str = "none"
    details: dict[str, str] = {}


class AttachOrder(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of ATTACH. `disks` are NBD URIs by volume."""

    instance: str
    source: str
    disks: dict[str, str]
    settings: StandbySettings
    isolated: bool
    hydrate: bool = False
    timeout_seconds: float = 300.0
