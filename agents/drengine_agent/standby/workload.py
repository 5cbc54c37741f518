"""A workload on this host: disks, mounts, services. Every step looks first, so all of it can be asked for again.

What is to be is noted in `workload.json` before anything is done, so that it can be undone after any crash.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from drengine.control.attach import (
    ATTACH_WAYS,
    AUTO,
    BUBBLE,
    HOST,
    ISCSI,
    NONE,
    AttachOrder,
    StandbyMount,
    breaks_isolation,
)
from drengine.durable import replace_durably
from drengine.linux.devices import disk_name
from drengine.linux.mounts import read_mounts
from drengine.model.errors import DrengineError
from drengine.model.names import check_name
from drengine.nbd.hydrators import end_hydrators, hydration_progress, start_hydrators
from drengine.process import Finished, end_marked, marked, run_command
from drengine_agent.standby.allow import AllowOptions
from drengine_agent.standby.disk import AttachedDisk
from drengine_agent.standby.disks import attached_disks, is_attached, partition_of, wait_for_partition
from drengine_agent.standby.errors import STANDBY_FAILED, STANDBY_SETTINGS
from drengine_agent.standby.mounts import OwnMounts
from drengine_agent.standby.network import WorkloadNetwork
from drengine_agent.standby.ways import COPY, FUSE, choose

MARK = "DRENGINE_INSTANCE"
LOOK_SECONDS = 0.1
GRACE_SECONDS = 15.0
OUTPUT_CHARACTERS_MAX = 2000

_WAY = "attach"
EVERYTHING = AllowOptions()
Say = Callable[[str], None]


class Workload:
    """One instance in a directory of its own. Calls block."""

    def __init__(self, order: AttachOrder, directory: Path, *, allow: AllowOptions = EVERYTHING) -> None:
        """`allow`: what is judged once more where links have been followed.

        Raises:
            DrengineError: BAD_NAME, STANDBY_SETTINGS.
        """
        check_name(order.instance, what="instance")
        for volume in order.disks:
            check_name(volume, what="volume")
        self._order = order
        self._settings = order.settings
        self._directory = directory.resolve()
        self._network = WorkloadNetwork(order, self._directory)
        instances = self._directory.parent
        self._mounts = OwnMounts(
            self._directory / "mounts.json",
            lambda mount: (number := mount.block_device()) is not None and is_attached(number, instances),
            allow,
        )
        _check(order)

    @staticmethod
    def load(directory: Path) -> Workload | None:
        """The one that was noted in a directory, if any."""
        try:
            order = msgspec.json.decode((directory / "workload.json").read_bytes(), type=AttachOrder)
        except (OSError, msgspec.MsgspecError):
            return None
        return Workload(order, directory)

    def start(self, say: Say) -> dict[str, Any]:
        """Attach, mount, start, and wait until it is healthy.

        Raises:
            DrengineError: STANDBY_FAILED, HYDRATION_FAILED; what was done stays, for the next try or for `stop`.
                STANDBY_SETTINGS: it would not be isolated; nothing was done.
        """
        if why := breaks_isolation(self._order):
            raise DrengineError(STANDBY_SETTINGS, why)
        deadline = time.monotonic() + self._order.timeout_seconds
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_durably(self._directory / "workload.json", msgspec.json.encode(self._order))
        self._choose_way()
        for disk in self._attachments(hydrate=True):
            say(f"disk {disk.volume} attached as {disk.attach(deadline)}, by {self._way}")
        for mount in self._settings.mounts:
            device = wait_for_partition(self._disk_of(mount), mount.partition)
            self._mounts.mount(mount.at, device, mount.options)
            say(f"{mount.at} mounted")
        self._network.make()
        if self._settings.start and not self._started.exists():
            self._must(self._settings.start, deadline)
            self._started.touch()
            say("services started")
        while not (finished := self._health(deadline)).ok:
            if time.monotonic() > deadline:
                raise DrengineError(STANDBY_FAILED, f"not healthy in time: {finished.output[-OUTPUT_CHARACTERS_MAX:]}")
            time.sleep(LOOK_SECONDS)
        return {**self.details(), "health": finished.output[-OUTPUT_CHARACTERS_MAX:]}

    def quiesce(self) -> None:
        """Stop the services, unmount, detach: everything is flushed to the branch and nobody writes it.

        Raises:
            DrengineError: STANDBY_FAILED.
        """
        if not self._directory.exists():
            return  # nothing is done before it is noted there
        if self._settings.stop and self._network.is_there:
            self._must(self._settings.stop, time.monotonic() + self._order.timeout_seconds)
        self._started.unlink(missing_ok=True)
        end_marked(MARK, self._order.instance, self._directory, grace_seconds=GRACE_SECONDS)
        self._unmount()
        for disk in self._attachments(hydrate=False):
            disk.detach()
        end_hydrators(self._order.instance, self._directory / "hydration")
        (self._directory / _WAY).unlink(missing_ok=True)
        self._network.leave()

    def stop(self) -> None:
        """`quiesce`, and nothing is left of it."""
        self.quiesce()
        shutil.rmtree(self._directory, ignore_errors=True)

    def running(self) -> bool:
        """Attached, mounted and started."""
        return (
            all(disk.device() is not None for disk in self._attachments(hydrate=False))
            and self._mounts.are_there([mount.at for mount in self._settings.mounts])
            and (not self._settings.start or self._started.exists())
        )

    def healthy(self, seconds: float) -> bool:
        """Whether its own check passes now."""
        return self.running() and self._health(time.monotonic() + seconds).ok

    def details(self) -> dict[str, Any]:
        """For reports: devices, mounts, how far hydration is."""
        devices = {disk.volume: str(disk.device() or "") for disk in self._attachments(hydrate=False)}
        told: dict[str, Any] = {**self._settings.details, "devices": devices, "attach": self._way}
        told["mounts"] = [mount.at for mount in self._settings.mounts]
        if (addresses := self._network.addresses()) is not None:
            told["addresses"] = addresses
        if self._order.hydrate:
            told |= hydration_progress(self._directory / "hydration", self._order.disks)
        return told

    def run_inside(self, argv: list[str], seconds: float) -> Finished:
        """A command as the workload's own run: as its user, in its network."""
        return self._run(argv, seconds, mark=False)

    @property
    def user(self) -> str:
        """As whom its commands run; "" is root."""
        return self._settings.user

    @property
    def network(self) -> str:
        """The name of its own network; "" where it is the host's."""
        return self._network.name

    @property
    def _started(self) -> Path:
        return self._directory / "started"

    def _attachments(self, *, hydrate: bool) -> list[AttachedDisk]:
        uris, way = self._order.disks, self._way
        # nbdfuse takes no certificates, nbd-client speaks no TLS 1.3; a LUN is hydrated where it is served.
        passed_on = any(uri.startswith("nbds") for uri in uris.values())
        if hydrate and way not in (COPY, ISCSI) and (self._order.hydrate or passed_on):
            place = self._directory / "hydration"
            uris = start_hydrators(self._order.instance, place, uris, copied=self._order.hydrate)
        return attached_disks(self._order, uris, self._directory, way)

    @property
    def _way(self) -> str:
        """How the disks are attached, or were; as noted where it was chosen here."""
        try:
            return (self._directory / _WAY).read_text()
        except OSError:
            return self._settings.attach if self._settings.attach != AUTO else FUSE

    def _choose_way(self) -> None:
        """And note it, before anything is attached: another host process has to find it again.

        Raises:
            DrengineError: STANDBY_SETTINGS, this host can attach disks in no way.
        """
        if (self._directory / _WAY).exists():  # until it is quiesced: a copy has what was written
            return
        choice = choose(self._settings.attach, luns=bool(self._order.luns))
        if choice.fault:
            raise DrengineError(STANDBY_SETTINGS, f"attach {self._settings.attach}: {choice.fault}")
        replace_durably(self._directory / _WAY, choice.way.encode())

    def _unmount(self) -> None:
        """Our mounts, and only those; then nobody may use the disks any more.

        Raises:
            DrengineError: STANDBY_FAILED.
        """
        if not self._mounts.noted:
            for mount in self._settings.mounts:
                self._mounts.adopt(mount.at, partition_of(self._disk_of(mount), mount.partition))
        self._mounts.unmount_all()
        devices = [disk.device() for disk in self._attachments(hydrate=False)]
        disks = {device.name for device in devices if device}
        for left in read_mounts():
            number = left.block_device()
            if number and disks & {disk_name(number)}:
                raise DrengineError(STANDBY_FAILED, f"{left.source} is still mounted at {left.at}: unmount it there")

    def _disk_of(self, mount: StandbyMount) -> Path:
        """Its device; one that is nowhere if it is not attached."""
        disk = next(each for each in self._attachments(hydrate=False) if each.volume == mount.volume)
        return disk.device() or Path("/dev/detached")

    def _health(self, deadline: float) -> Finished:
        if not self._settings.health:
            return Finished(0, "")
        return self._run(self._settings.health, max(0.1, deadline - time.monotonic()), mark=False)

    def _must(self, argv: list[str], deadline: float) -> None:
        finished = self._run(argv, max(0.1, deadline - time.monotonic()), mark=argv is self._settings.start)
        if not finished.ok:
            said = finished.output[-OUTPUT_CHARACTERS_MAX:] or f"status {finished.code}"
            raise DrengineError(STANDBY_FAILED, f"{argv[0]}: {said}")

    def _run(self, argv: list[str], seconds: float, *, mark: bool) -> Finished:
        inside = ["ip", "netns", "exec", self.network, *argv] if self.network else argv
        told = {
            **(marked(MARK, self._order.instance, self._directory) if mark else {MARK: ""}),
            "DRENGINE_SOURCE": self._order.source,
            "DRENGINE_ISOLATED": "1" if self._order.isolated else "",
        }
        user, directory = self._settings.user, self._directory
        if user:
            directory = Path("/")  # ours is closed to others
        if user and self.network:  # only root may enter the network
            inside = ["ip", "netns", "exec", self.network, "runuser", "-u", user, "--", *argv]
            user = ""
        return run_command(inside, timeout_seconds=seconds, environment=told, directory=directory, user=user)


def _check(order: AttachOrder) -> None:
    settings = order.settings
    if settings.attach not in ATTACH_WAYS:
        raise DrengineError(STANDBY_SETTINGS, f"attach {settings.attach!r} is none of {', '.join(ATTACH_WAYS)}")
    if settings.attach == ISCSI and not set(order.disks) <= set(order.luns):
        raise DrengineError(STANDBY_SETTINGS, "attach iscsi: not every disk is served over iSCSI")
    if settings.network not in {NONE, HOST, BUBBLE}:
        raise DrengineError(STANDBY_SETTINGS, f"network {settings.network!r} is none of none, bubble and host")
    for mount in settings.mounts:
        if mount.volume not in order.disks:
            raise DrengineError(STANDBY_SETTINGS, f"there is no volume {mount.volume!r} to mount at {mount.at}")
        if not mount.at.startswith("/") or ".." in mount.at.split("/"):
            raise DrengineError(STANDBY_SETTINGS, f"{mount.at!r} is no absolute path to mount at")
