"""Mounting at places of this host, and knowing one's own mounts again.

A replica's content may come from a host that was taken over. So nothing that lies on an attached disk decides where
something is mounted: a link there is refused, and the place is held open from the look at it until it is mounted on.
Set-user-id programs and device nodes on a replica mean nothing here unless the order says so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath

import msgspec

from drengine.durable import replace_durably
from drengine.linux.devices import attachment, device_number
from drengine.linux.mounts import Mount, follow_no_links, mount_at, read_mounts
from drengine.model.errors import DrengineError
from drengine_agent.standby.allow import AllowOptions
from drengine_agent.standby.errors import PLACE_TAKEN, STANDBY_FAILED, STANDBY_SETTINGS
from drengine_agent.standby.tools import run_tool

LINKS_MAX = 40
_XFS_MAGIC = b"XFSB"
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Mounted(msgspec.Struct, frozen=True):
    """A mount of ours, noted before it is made.

    Attributes:
        at: the place that the order names.
        place: the same without links.
        device: what is mounted there, as `attachment` names it.
    """

    at: str
    place: str
    device: str

    def is_there(self, mounts: Sequence[Mount]) -> bool:
        """It is, and nothing else is mounted over it."""
        found = mount_at(Path(self.place), mounts)
        return found is not None and self.is_at(found)

    def is_at(self, mount: Mount) -> bool:
        """It is our device that this mount shows."""
        number = mount.block_device()
        return number is not None and attachment(number) == self.device


class OwnMounts:
    """The mounts of one instance, noted in a file."""

    def __init__(self, file: Path, is_hostile: Callable[[Mount], bool], allow: AllowOptions) -> None:
        """
        Args:
            file: where they are noted.
            is_hostile: whether what a mount shows was written by somebody whom this host need not trust.
            allow: where its owner lets disks be mounted, and how.
        """
        self._file = file
        self._is_hostile = is_hostile
        self._allow = allow

    @property
    def noted(self) -> list[Mounted]:
        """In the order in which they were mounted."""
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=list[Mounted])
        except (OSError, msgspec.MsgspecError):
            return []

    def adopt(self, at: str, device: Path) -> None:
        """Note a mount of ours that was made by a version that noted none."""
        with contextlib.suppress(OSError):
            self._note(Mounted(at, str(Path(at).resolve()), attachment(device_number(device))))

    def mount(self, at: str, device: Path, options: Sequence[str]) -> None:
        """Mount a device of ours; no error if it is mounted there already.

        Raises:
            DrengineError: PLACE_TAKEN, STANDBY_SETTINGS, STANDBY_FAILED.
            OrderRefusedError: this host's owner does not want it there.
        """
        try:
            with self._held(PurePath(at)) as (descriptor, place):
                self._allow.require_place(place)
                wanted, there = Mounted(at, str(place), attachment(device_number(device))), _mount_of(descriptor)
                if there.at == place and not wanted.is_at(there):
                    raise DrengineError(PLACE_TAKEN, f"{place}: {there.source} ({there.kind}) is mounted there")
                self._note(wanted)
                if there.at != place:
                    told = ",".join(["nosuid", "nodev", *_needed(device), *options])
                    target = f"/proc/{os.getpid()}/fd/{descriptor}/."
                    run_tool("mount", "--no-canonicalize", "-o", told, device, target, meant=str(place))
                    if self._allow.links == "refuse":
                        follow_no_links(place)
        except OSError as error:
            raise DrengineError(STANDBY_FAILED, f"{at}: {error.strerror}") from error

    def unmount_all(self) -> None:
        """What was mounted last goes first; what others mounted stays.

        Raises:
            DrengineError: STANDBY_FAILED, one is in use.
        """
        for each in reversed(self.noted):
            if each.is_there(read_mounts()):
                run_tool("umount", each.place)
        self._file.unlink(missing_ok=True)

    def are_there(self, places: Sequence[str]) -> bool:
        """Whether all of these are mounted."""
        mounts = read_mounts()
        there = {each.at for each in self.noted if each.is_there(mounts)}
        return there.issuperset(places)

    def _note(self, mounted: Mounted) -> None:
        noted = self.noted
        if mounted not in noted:
            replace_durably(self._file, msgspec.json.encode([*noted, mounted]))

    @contextlib.contextmanager
    def _held(self, at: PurePath) -> Iterator[tuple[int, Path]]:
        """A directory, made if it is missing, held open; and its path without links."""
        descriptor = os.open("/", _LOOK | os.O_DIRECTORY)
        try:
            parts, links = deque(at.parts[1:]), 0
            while parts:
                part = parts.popleft()
                found = _entered(descriptor, part)
                if not stat.S_ISLNK(os.fstat(found).st_mode):
                    os.close(descriptor)
                    descriptor = found
                    continue
                os.close(found)
                if self._is_hostile(_mount_of(descriptor)):
                    raise DrengineError(STANDBY_SETTINGS, f"{at}: {part} is a link on an attached disk")
                links += 1
                leads_to = PurePath(os.readlink(part, dir_fd=descriptor))
                if links > LINKS_MAX:
                    raise DrengineError(STANDBY_SETTINGS, f"{at}: its links lead nowhere")
                if leads_to.is_absolute():
                    os.close(descriptor)
                    descriptor = os.open("/", _LOOK | os.O_DIRECTORY)
                parts.extendleft(reversed(leads_to.parts[leads_to.is_absolute() :]))
            if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise DrengineError(STANDBY_SETTINGS, f"{at} is no directory")
            yield descriptor, Path(f"/proc/self/fd/{descriptor}").readlink()
        finally:
            os.close(descriptor)


def _entered(directory: int, name: str) -> int:
    """A descriptor of what has this name in a directory: a directory made for it if there is nothing."""
    with contextlib.suppress(FileNotFoundError):
        return os.open(name, _LOOK, dir_fd=directory)
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=directory)
    return os.open(name, _LOOK, dir_fd=directory)


def _mount_of(descriptor: int) -> Mount:
    """The mount through which an open directory is seen."""
    told = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii")
    number = next(int(line.split()[1]) for line in told.splitlines() if line.startswith("mnt_id:"))
    found = next((mount for mount in read_mounts() if mount.number == number), None)
    if found is None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    return found


def _needed(device: Path) -> list[str]:
    """An xfs has its original's UUID, which may be mounted on this host: without this the kernel refuses the second."""
    with device.open("rb") as disk:
        return ["nouuid"] if disk.read(len(_XFS_MAGIC)) == _XFS_MAGIC else []
