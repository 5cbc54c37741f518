"""Moving a running virtual machine onto the local copies of its disks, without a stop, while it stays protected.

    python -m drengine.failover.drivers.move PLAN REPORT

is the process beside a hydrated machine. As long as a disk becomes local, the machine uses it through its hydrator.
When all is here, the machine gets another root node for it, in place, between two requests:

    before:  device -> NBD -> hydrator -> branch and copy
    after:   device -> quorum -> the copy's file                 reads; writes
                              -> NBD -> hydrator -> branch        writes and flushes

So it reads the file as any machine reads a local disk. A write or flush succeeds only when both took it: the branch has
in its order of writing whatever the machine was told is there. The copy stays a cache, and is never promoted to more.

Whatever fails pauses the machine (`werror=stop`) instead of telling it. This process then takes the copy away if that
is what failed, and lets the machine go on: it repeats its request, and sees nothing. It keeps no state of its own: QEMU
tells which node is whose root, so it may be killed at any moment and started again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from pathlib import Path

import msgspec

from drengine.durable import replace_durably
from drengine.failover.drivers.qmp import Qmp, QmpError
from drengine.model.errors import DrengineError
from drengine.nbd.client import NbdClient
from drengine.nbd.hydrating import ALONE, COMPLETE
from drengine.nbd.hydrator import read_progress
from drengine.nbd.hydrators import HydratorFiles, hydrator_files, is_hydrating, start_hydrators

log = logging.getLogger("drengine.move")

MARK = "DRENGINE_MOVER"
MOVES = "moves.json"
"""The report, in the instance's directory."""

LOOK_SECONDS = 0.25
HYDRATOR_LOOK_SECONDS = 2.0
HYDRATOR_SECONDS = 5.0
START_SECONDS = 10.0
QMP_SECONDS = 120.0
"""Swapping a root waits for the requests under way, and these for the branch."""

HYDRATING, MOVED, GIVEN_UP, STAYS = "hydrating", "moved", "given up", "stays"
PAUSED = "io-error"
"""What QEMU says of a machine that a failed request has paused."""


class MovingDisk(msgspec.Struct, frozen=True):
    """One disk of the machine.

    Attributes:
        volume: its name.
        device: id of its device in QEMU.
        node: its root node while the copy is not used.
        uri: of the branch, for a hydrator that must be started again.
        stays: why it is used through its hydrator for ever; empty: it moves.
    """

    volume: str
    device: str
    node: str
    uri: str
    stays: str = ""

    @property
    def local(self) -> str:
        """Node of the copy's file."""
        return f"{self.device}-local"

    @property
    def through(self) -> str:
        """Node of what must succeed with it: the branch, through the hydrator."""
        return f"{self.device}-through"

    @property
    def both(self) -> str:
        """Root node that reads the one and writes the two."""
        return f"{self.device}-both"


class MovePlan(msgspec.Struct, frozen=True):
    """What is moved.

    Attributes:
        instance: the machine's.
        launched_ns: when.
        qmp: the socket of QEMU that is for this alone.
        hydration: the directory of the hydrators.
        disks: the machine's.
    """

    instance: str
    launched_ns: int
    qmp: str
    hydration: str
    disks: list[MovingDisk]


class Move(msgspec.Struct):
    """How far a disk is, for reports.

    Attributes:
        state: `hydrating`, `moved`, `given up` or `stays`.
        seconds: from the launch until it had moved; None before.
        swap_seconds: how long new requests waited for it.
        reason: why it was given up: the machine goes on with the branch; or why it stays on its hydrator.
    """

    state: str = HYDRATING
    seconds: float | None = None
    swap_seconds: float | None = None
    reason: str = ""


def read_moves(report: Path) -> dict[str, Move]:
    """How far each volume is; empty when nothing is known."""
    try:
        return msgspec.json.decode(report.read_bytes(), type=dict[str, Move])
    except (OSError, msgspec.DecodeError):
        return {}


class Mover:
    """Looks after one machine. `look` does what is to be done now; it never waits for something to happen.

    Attributes:
        moves: how far each volume is.
    """

    def __init__(self, plan: MovePlan, qmp: Qmp, moves: dict[str, Move]) -> None:
        """Take over, from what QEMU and an earlier report say.

        Raises:
            OSError, ValueError: QEMU is gone.
        """
        self._plan = plan
        self._qmp = qmp
        self.moves = {disk.volume: moves.get(disk.volume, Move()) for disk in plan.disks}
        for disk in plan.disks:
            move = self.moves[disk.volume]
            if disk.stays:
                move.state, move.reason = STAYS, disk.stays
            elif self._root(disk) == disk.both:
                move.state = MOVED
            else:
                self._leave_copy(disk)
                move.state = HYDRATING if move.state == MOVED else move.state
        self._next_hydrator_look = 0.0

    def look(self) -> None:
        """See to hydrators, to what failed, and to what is complete.

        Raises:
            OSError, ValueError: QEMU is gone.
        """
        paused = self._qmp.execute("query-status")["status"] == PAUSED
        if paused or time.monotonic() >= self._next_hydrator_look:
            self._next_hydrator_look = time.monotonic() + HYDRATOR_LOOK_SECONDS
            for disk in self._plan.disks:
                self._keep_hydrator(disk)
        self._mend(paused=paused)
        for disk in self._plan.disks:
            if self.moves[disk.volume].state == HYDRATING and not paused:
                self._move_if_complete(disk)

    def _move_if_complete(self, disk: MovingDisk) -> None:
        files = self._files(disk)
        progress = read_progress(files.report)
        if given_up := self._given_up(disk):
            self._give_up(disk, given_up)
        if progress is None or progress.hydrated_bytes < progress.size_bytes:
            return
        try:
            with NbdClient(str(files.socket), COMPLETE, timeout_seconds=HYDRATOR_SECONDS) as hydrator:
                hydrator.flush()  # the swap waits for what is under way: not now if the branch does not answer
        except (OSError, DrengineError):
            return
        try:
            began = time.monotonic()
            self._add_nodes(disk, files)
            self._swap(disk, disk.both)
        except QmpError as error:
            self.leave(disk, str(error))
            return
        move = self.moves[disk.volume]
        move.state, move.swap_seconds = MOVED, round(time.monotonic() - began, 4)
        move.seconds = round((time.time_ns() - self._plan.launched_ns) / 1e9, 3)
        log.info("volume %s has moved", disk.volume)

    def _mend(self, *, paused: bool) -> None:
        """Take copies away that failed, and let a machine go on that a failed request has paused."""
        events, self._qmp.events[:] = list(self._qmp.events), []
        failed = {each["data"]["node-name"]: each["data"] for each in events if each["event"] == "QUORUM_REPORT_BAD"}
        for disk in self._plan.disks:
            if local := failed.get(disk.local):
                self.leave(disk, f"{local['type']}: {local.get('error', 'failed')}")
            elif paused and (given_up := self._given_up(disk)):
                self.leave(disk, given_up)
            elif paused and disk.through not in failed:  # nobody knows why, as after a start of this process
                self.leave(disk)
        if paused:
            self._qmp.execute("cont")

    def _keep_hydrator(self, disk: MovingDisk) -> None:
        """Start a hydrator again that has ended; its copy begins anew, so the one before it is used no more."""
        if is_hydrating(self._plan.instance, Path(self._plan.hydration), disk.volume):
            return
        try:
            start_hydrators(self._plan.instance, Path(self._plan.hydration), {disk.volume: disk.uri})
        except DrengineError as error:
            log.warning("%s", error)
            return
        if self.moves[disk.volume].state == MOVED:
            self.leave(disk)

    def leave(self, disk: MovingDisk, reason: str = "") -> None:
        """Use the disk through its hydrator alone; with a reason for good, else until it is complete again."""
        move = self.moves[disk.volume]
        if self._root(disk) == disk.both:
            self._swap(disk, disk.node)
        self._leave_copy(disk)
        if reason:
            self._give_up(disk, reason)
        elif move.state == MOVED:
            move.state = HYDRATING

    def _leave_copy(self, disk: MovingDisk) -> None:
        """The machine reads the copy no more; its hydrator may go on without."""
        self._remove_nodes(disk)
        with contextlib.suppress(OSError, DrengineError):  # a hydrator that is gone relies on nothing
            NbdClient(str(self._files(disk).socket), ALONE, timeout_seconds=HYDRATOR_SECONDS).close()

    def _give_up(self, disk: MovingDisk, reason: str) -> None:
        move = self.moves[disk.volume]
        if move.state == GIVEN_UP:
            return
        move.state, move.reason = GIVEN_UP, reason
        log.warning("volume %s goes on with the branch: its local copy is given up (%s)", disk.volume, reason)

    def _add_nodes(self, disk: MovingDisk, files: HydratorFiles) -> None:
        add = self._qmp.execute
        unsynced = {"no-flush": True}  # the copy is a cache: a flush is the branch's
        file = {"driver": "file", "filename": str(files.copy), "cache": unsynced, "discard": "unmap"}
        add("blockdev-add", driver="raw", node_name=disk.local, file=file, cache=unsynced, discard="unmap")
        server = {"type": "unix", "path": str(files.socket)}
        add("blockdev-add", driver="nbd", node_name=disk.through, server=server, export=COMPLETE, discard="unmap")
        add(
            "blockdev-add",
            driver="quorum",
            node_name=disk.both,
            children=[disk.local, disk.through],
            read_pattern="fifo",
            vote_threshold=2,
            discard="unmap",
            detect_zeroes="unmap",
        )

    def _remove_nodes(self, disk: MovingDisk) -> None:
        for node in (disk.both, disk.through, disk.local):
            with contextlib.suppress(QmpError):  # it is not there
                self._qmp.execute("blockdev-del", node_name=node)

    def _swap(self, disk: MovingDisk, node: str) -> None:
        self._qmp.execute("qom-set", path=f"/machine/peripheral/{disk.device}", property="drive", value=node)

    def _given_up(self, disk: MovingDisk) -> str:
        """Why the hydrator has no copy any more."""
        progress = read_progress(self._files(disk).report)
        return progress.given_up if progress else ""

    def _files(self, disk: MovingDisk) -> HydratorFiles:
        return hydrator_files(Path(self._plan.hydration), disk.volume)

    def _root(self, disk: MovingDisk) -> str:
        root = self._qmp.execute("qom-get", path=f"/machine/peripheral/{disk.device}", property="drive")
        return str(root)


def _connect(path: Path) -> Qmp:
    """Connect to a QEMU that may only just be starting.

    Raises:
        OSError, ValueError: it is not there.
    """
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return Qmp(path, seconds_max=QMP_SECONDS)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(LOOK_SECONDS)


def main(plan_path: str, report_path: str) -> int:
    """See the module; ends with the machine."""
    os.environ.pop(MARK, None)  # hydrators that are started from here are no part of this process
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    plan = msgspec.json.decode(Path(plan_path).read_bytes(), type=MovePlan)
    report = Path(report_path)
    told = b""
    with contextlib.suppress(OSError, ValueError), _connect(Path(plan.qmp)) as qmp:
        mover = Mover(plan, qmp, read_moves(report))
        while True:
            mover.look()
            now = msgspec.json.encode(mover.moves)
            if now != told:
                replace_durably(report, now)
                told = now
            time.sleep(LOOK_SECONDS)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
