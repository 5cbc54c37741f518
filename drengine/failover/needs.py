"""What a step needs on the host that carries it out, so that it can be looked for before anything is done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Program:
    """A program, as it is called; `user`: as whom, empty: as ourselves."""

    name: str
    user: str = ""


@dataclass(frozen=True, slots=True)
class Library:
    """A Python module, and which package brings it."""

    module: str
    package: str


@dataclass(frozen=True, slots=True)
class ReadableFile:
    """A file that is read."""

    path: str


@dataclass(frozen=True, slots=True)
class Memory:
    """So much memory, in bytes, for as long as the workload runs."""

    size_bytes: int


@dataclass(frozen=True, slots=True)
class MachineNetwork:
    """A network of this host that virtual machines are plugged into: this bridge, or empty: a drill's bubble."""

    bridge: str = ""


@dataclass(frozen=True, slots=True)
class PortalAddress:
    """An address of this host at which disks are served over iSCSI."""

    address: str


Need = Program | Library | ReadableFile | Memory | MachineNetwork | PortalAddress


def programs(*commands: list[str], user: str = "") -> tuple[Program, ...]:
    """Of commands, as far as there are any."""
    return tuple(Program(argv[0], user) for argv in commands if argv)
