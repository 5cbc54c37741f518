"""On which host a source lives, and whether another host's disks could take it in.

By default a source lives on the host whose agent bears its name. A run may move it to another host, whose agent keeps
its own name: the store says which agent ships a source (`Store.home`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from drengine.model.errors import DrengineError, error_kind
from drengine.model.points import VolumeGeometry

NEW_HOME_UNFIT = error_kind(
    "new-home-unfit",
    178,
    "The host can't become the new home of this source.",
    "The message says what is missing. Its agent's file needs `spare = true` and a [[volume]], at least as large, for "
    "each of the source's; --disk VOLUME=DISK says which is which.",
)
SOURCE_MOVED = error_kind(
    "source-moved",
    NEW_HOME_UNFIT,
    "The source lives on another host now; the agent of its old one ships nothing any more, whatever its disks hold.",
    "Give this host a name of its own before you use it again (docs/failback.md#home-to-new-hardware).",
    final=True,
)


class Home(NamedTuple):
    """Where a source lives.

    Attributes:
        agent: name of the agent that ships it.
        former: names of agents that did so before, and never will again.
    """

    agent: str
    former: frozenset[str] = frozenset()


class SpareDisk(NamedTuple):
    """A disk that a host offers. `name` and `path` are those of its agent's file."""

    name: str
    path: str
    size_bytes: int
    sector_bytes: int = 512


def place_volumes(
    wanted: Sequence[VolumeGeometry], offered: Sequence[SpareDisk], disks: Mapping[str, str]
) -> dict[str, SpareDisk]:
    """Which disk each volume of a source would lie on, by the volume's name.

    `disks` names some of them, by the disk's name or path; others lie on the disk of their own name, and an only
    volume on an only disk.

    Raises:
        DrengineError: NEW_HOME_UNFIT, naming the volume and the sizes.
    """
    if strange := sorted(set(disks) - {each.name for each in wanted}):
        there = ", ".join(each.name for each in wanted)
        raise DrengineError(NEW_HOME_UNFIT, f"the source has no volume {strange[0]!r}; there are {there}")
    placed: dict[str, SpareDisk] = {}
    for volume in wanted:
        disk = _disk_for(volume, offered, disks, only=len(wanted) == len(offered) == 1)
        taken = next((name for name, each in placed.items() if each == disk), "")
        if taken:
            raise DrengineError(NEW_HOME_UNFIT, f"volumes {taken} and {volume.name} can't share disk {disk.name}")
        if disk.size_bytes < volume.size_bytes:
            raise DrengineError(
                NEW_HOME_UNFIT,
                f"volume {volume.name} has {volume.size_bytes} bytes, and disk {disk.name} ({disk.path}) only "
                f"{disk.size_bytes}",
            )
        placed[volume.name] = disk
    return placed


def _disk_for(
    volume: VolumeGeometry, offered: Sequence[SpareDisk], disks: Mapping[str, str], *, only: bool
) -> SpareDisk:
    name = disks.get(volume.name, volume.name)
    found = next((each for each in offered if name in (each.name, each.path)), None)
    if found is None and only and volume.name not in disks:
        found = offered[0]
    if found is None:
        there = ", ".join(f"{each.name} ({each.path})" for each in offered) or "none"
        raise DrengineError(
            NEW_HOME_UNFIT, f"the host offers no disk {name!r} for volume {volume.name}; it has {there}"
        )
    return found
