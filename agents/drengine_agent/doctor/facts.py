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
        within: names of other volumes that this one is, lies on, or is a part of.
    """

    name: str
    path: Path
    problem: str = ""
    kind: DeviceKind = DeviceKind.OTHER
    device: str = ""
    refusal: str = ""
    size_bytes: int = 0
    weak: bool = False
    within: tuple[str, ...] = ()


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
    """Whether a party answers, and would have to do with this agent.

    Attributes:
        address: HOST:PORT.
        problem: why not; empty when all that was tried went well.
        tried: what was tried.
        role: `target`, `broker` or `authority`.
        hint: what to do about the problem.
        refused: it answers and refuses: waiting changes nothing.
    """

    address: str
    problem: str = ""
    tried: str = "takes connections (no more was tried)"
    role: str = "target"
    hint: str = ""
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that stands against an installation, and what to do about it.

    Attributes:
        id: of the finding.
        seen, hint: for people.
    """

    id: str
    seen: str
    hint: str


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
        parties: whether those answer whom the agent needs: targets, broker, authority.
        troubles: further reasons against an installation.
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
    parties: tuple[Reach, ...] = field(default=())
    troubles: tuple[Trouble, ...] = field(default=())
