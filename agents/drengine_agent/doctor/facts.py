"""What was seen on a host: plain values, so that any host can be described by writing them down."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


class DeviceKind(enum.StrEnum):
    """What stands behind a volume's path.

    Attributes:
        REQUEST: a block device that completes requests (disks, partitions of them, loop).
        BIO: a block device that completes bios (device mapper, md).
        FILE: a regular file.
        OTHER: neither a device nor a file.
    """

    REQUEST = "request"
    BIO = "bio"
    FILE = "file"
    OTHER = "other"


class Outcome(enum.StrEnum):
    """How the self-test went."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not-run"


@dataclass(frozen=True, slots=True)
class SelfTest:
    """The tracker tried on a small loop device made for it: written, and the bits read back.

    Attributes:
        outcome: how it went.
        seen: what was seen, or why it was not run.
        kinds: of devices that it tried; nothing is known about others.
    """

    outcome: Outcome
    seen: str
    kinds: tuple[DeviceKind, ...] = ()

    @classmethod
    def skipped(cls, why: str) -> SelfTest:
        """It was not run."""
        return cls(Outcome.NOT_RUN, why)


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume that is, or would be, protected.

    Attributes:
        name: its name.
        path: where it is.
        problem: why it can't be looked at; the rest means nothing then.
        kind: what it is.
        device: the kernel's name of the device, such as `nvme0n1p2`.
        refusal: why the kernel's events would not show all its writes; empty if they do.
        size_bytes: its size.
        weak: nothing that lasts tells this disk from another one.
    """

    name: str
    path: Path
    problem: str = ""
    kind: DeviceKind = DeviceKind.OTHER
    device: str = ""
    refusal: str = ""
    size_bytes: int = 0
    weak: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """A directory that the agent or a store on this host writes to.

    Attributes:
        role: `state directory` or `store`.
        path: the directory, which may not exist yet.
        on_volumes: names of protected volumes that it lies on.
        free_bytes: free space there.
        problem: why it can't be looked at.
    """

    role: str
    path: Path
    on_volumes: tuple[str, ...] = ()
    free_bytes: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Reach:
    """Whether the target answers.

    Attributes:
        address: HOST:PORT.
        problem: why not; empty when a connection was made. Nothing more than a connection is tried.
    """

    address: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Host:
    """Everything that the doctor looks at.

    Attributes:
        python: version of the interpreter that asks.
        modules_missing: modules of the standard library that the agent needs and this Python lacks.
        machine: `x86_64`, `aarch64`...
        kernel: its release, as `uname -r` says.
        user_id: effective user.
        capabilities_missing: of those that tracking needs, in effect.
        lockdown: the kernel's mode: `none`, `integrity`, `confidentiality`, or empty where there is no such thing.
        container: `docker`, `lxc`, `wsl1`, `wsl2`...; empty on a host of its own.
        trials: what tracking needs of the kernel, each tried: its own reason why not, or nothing. Empty if not tried.
        systemd: `running`, `installed` or `absent`.
        self_test: how the tracker did.
        wanted: the tracker that the configuration or the person asks for; `auto` for the best that will do.
        volumes: what is to be protected.
        places: what is written to.
        target: whether it answers; None if nobody named one.
    """

    python: tuple[int, int, int]
    modules_missing: tuple[str, ...]
    machine: str
    kernel: str
    user_id: int
    capabilities_missing: tuple[str, ...]
    lockdown: str
    container: str
    trials: Mapping[str, str]
    systemd: str
    self_test: SelfTest
    wanted: str = "auto"
    volumes: tuple[Volume, ...] = field(default=())
    places: tuple[Place, ...] = field(default=())
    target: Reach | None = None
