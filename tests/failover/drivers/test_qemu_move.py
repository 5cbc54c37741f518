"""A machine moves onto the local copies of its disks while it runs; nothing flushed is lost, whatever dies."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from demo.story import free_port
from drengine.failover.drivers.driver import Disk, LaunchRequest
from drengine.failover.drivers.move import MARK as MOVER_MARK
from drengine.failover.drivers.move import MOVED, MovePlan, Mover
from drengine.failover.drivers.qemu.driver import QemuDriver
from drengine.failover.drivers.qmp import Qmp
from drengine.model.points import PointSelector
from drengine.nbd.export import Command, Complete, Export, Peer, Reply, Request
from drengine.nbd.file_export import FileExport, FileProvider
from drengine.nbd.hydrator import read_progress
from drengine.nbd.hydrators import DISK_MARK, hydrator_files
from drengine.process import find_marked
from drengine.store.store import Store
from tests.failover.drivers.qemu.guests import missing_for_linux
from tests.failover.drivers.stamping import SECTORS, newest_stamp, stamping_guest, stamps_missing
from tests.nbd.files import served
from tests.store.harness import Source
from tests.system.site import Site

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(missing_for_linux()), reason=f"not installed: {missing_for_linux()}"),
]

DISK_BYTES = SECTORS * 512 + (16 << 20)
DATA_AT = SECTORS * 512
DATA = random.Random(1).randbytes(8 << 20)
"""Content behind the stamps, so that there is something to copy."""
SECONDS = 45.0
BARE = {"accelerator": "tcg", "memory_mib": 64, "grace": "0.2s"}
"""A machine that looks for something to boot for ever."""


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="dr-move-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


class Machine:
    """A stamping guest under the driver."""

    def __init__(self, folder: Path, uri: str, settings: Mapping[str, Any]) -> None:
        self.driver = QemuDriver()
        self.request = LaunchRequest(
            instance=f"move-{secrets.token_hex(4)}",
            run="run-1",
            source="shop",
            disks=(Disk("data", DISK_BYTES, uri),),
            isolated=False,
            settings=settings,
            directory=folder / "instance",
            hydrate=True,
            timeout_seconds=SECONDS,
        )

    def launch(self) -> None:
        self.driver.launch(self.request, lambda _: None)

    @property
    def stamp(self) -> int:
        return newest_stamp(self.request.directory / "console.log")

    @property
    def move(self) -> dict[str, Any]:
        moves = self.driver.inspect(self.request).details.get("moves", {})
        told: dict[str, Any] = moves.get("data", {"state": "unknown"})
        return told

    def wait_for(self, what: str, ready: Callable[[], object]) -> None:
        deadline = time.monotonic() + SECONDS
        while not ready():
            assert time.monotonic() < deadline, f"{what}: {self.move}, stamp {self.stamp}, {self.notes}"
            time.sleep(0.05)

    def wait_for_state(self, state: str) -> None:
        self.wait_for(state, lambda: self.move["state"] == state)

    def goes_on(self, stamps: int = 5) -> None:
        """It makes so many stamps more."""
        goal = self.stamp + stamps
        self.wait_for("it goes on", lambda: self.stamp >= goal)

    def kill(self, mark: str, value: str) -> None:
        for process in find_marked(mark, value):
            os.kill(process, signal.SIGKILL)

    def kill_hydrator(self) -> None:
        self.kill(DISK_MARK, f"{self.request.instance}/data")

    def kill_mover(self) -> None:
        self.kill(MOVER_MARK, self.request.instance)

    def kill_all(self) -> None:
        self.kill("DRENGINE_INSTANCE", self.request.instance)
        self.kill_mover()
        self.kill_hydrator()

    @property
    def notes(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-1500:] for path in self.request.directory.rglob("*.log"))


@contextmanager
def machine(folder: Path, uri: str, settings: Mapping[str, Any] | None = None) -> Iterator[Machine]:
    made = Machine(folder, uri, settings or stamping_guest(folder))
    try:
        yield made
    finally:
        made.driver.stop(made.request)


class CountingExport(FileExport):
    """Counts reads."""

    reads = 0

    def submit(self, requests: list[Request], complete: Complete) -> list[Reply]:
        CountingExport.reads += sum(request.command == Command.READ for request in requests)
        return super().submit(requests, complete)


class CountingProvider(FileProvider):
    """Serves one file, and counts reads."""

    def __init__(self, file: Path) -> None:
        super().__init__({"data": file})
        self._file = file

    async def open(self, name: str, peer: Peer) -> Export:
        return CountingExport(self._file, name)


@contextmanager
def counted(folder: Path) -> Iterator[str]:
    """A disk in a file, served from a thread of this process."""
    file, socket = folder / "branch", folder / "s"
    with file.open("wb") as opened:
        opened.truncate(DISK_BYTES)
        opened.seek(DATA_AT)
        opened.write(DATA)
    with served(CountingProvider(file), socket, "data") as uri:
        yield uri


def test_after_the_move_reads_do_not_leave_the_host_and_the_branch_has_each_flushed_write(folder: Path) -> None:
    with counted(folder) as uri, machine(folder, uri) as guest:
        guest.launch()
        guest.wait_for_state("moved")
        told = guest.move
        assert 0 < told["swap_seconds"] < told["seconds"]
        guest.goes_on()
        reads = CountingExport.reads
        guest.goes_on(20)
        assert CountingExport.reads == reads
        guest.kill_all()
        newest = newest_stamp(guest.request.directory / "console.log")
        branch = (folder / "branch").read_bytes()
        assert not stamps_missing(branch, newest)
        assert branch[DATA_AT : DATA_AT + len(DATA)] == DATA
        local = (guest.request.directory / "hydration/data.img").read_bytes()
        assert not stamps_missing(local, newest)


@pytest.mark.parametrize("bus", ["scsi", "sata", "nvme"])
def test_on_every_bus_a_machine_moves_or_says_why_it_stays(folder: Path, bus: str) -> None:
    with counted(folder) as uri, machine(folder, uri, {**BARE, "disk_bus": bus}) as guest:
        guest.launch()
        guest.wait_for_state("stays" if bus == "nvme" else "moved")
        if bus == "nvme":
            assert guest.move["reason"] == "disk_bus nvme can't pause the machine"
        with Qmp(guest.request.directory / "qmp.sock") as qmp:
            for order in ("write -P 7 1M 4k", "flush"):
                line = f'qemu-io -d /machine/peripheral/device0 "{order}"'
                assert "rror" not in qmp.execute("human-monitor-command", command_line=line)
        branch, copy = folder / "branch", guest.request.directory / "hydration/data.img"
        assert branch.read_bytes()[1 << 20 :][:4096] == bytes([7]) * 4096
        guest.wait_for("the copy is whole", lambda: copy.read_bytes() == branch.read_bytes())


@pytest.mark.parametrize("bus", ["scsi", pytest.param("nvme", marks=pytest.mark.campaign)])
def test_on_other_buses_too_a_hydrator_that_dies_is_not_seen_by_the_guest(folder: Path, bus: str) -> None:
    with counted(folder) as uri, machine(folder, uri, stamping_guest(folder, bus)) as guest:
        guest.launch()
        for _ in range(2):
            guest.goes_on()
            guest.kill_hydrator()
            guest.goes_on()
            guest.wait_for_state("stays" if bus == "nvme" else "moved")
        guest.goes_on()
        guest.kill_all()
        assert not stamps_missing((folder / "branch").read_bytes(), guest.stamp)


class Killed(BaseException):
    """What ends a process between two orders."""


class DyingQmp(Qmp):
    """Ends its process at the order of that number: before QEMU has got it, or before the answer is read."""

    def __init__(self, path: Path, number: int, *, carried_out: bool) -> None:
        self.left = 0
        self._carried_out = carried_out
        super().__init__(path)
        self.left = number

    def execute(self, command: str, **arguments: Any) -> Any:
        self.left -= 1
        if self.left == 0 and not self._carried_out:
            raise Killed
        answer = super().execute(command, **arguments)
        if self.left == 0:
            raise Killed
        return answer


@pytest.mark.parametrize("carried_out", [False, True])
def test_a_move_that_is_killed_at_any_order_is_taken_up_and_no_write_is_outside_the_branch(
    folder: Path, monkeypatch: pytest.MonkeyPatch, carried_out: bool
) -> None:
    monkeypatch.setattr(QemuDriver, "_start_mover", lambda *_: None)
    with counted(folder) as uri, machine(folder, uri, BARE) as guest:
        guest.launch()
        plan = msgspec.json.decode((guest.request.directory / "move-plan.json").read_bytes(), type=MovePlan)
        disk, socket = plan.disks[0], Path(plan.qmp)
        files = hydrator_files(Path(plan.hydration), "data")
        while (progress := read_progress(files.report)) is None or progress.hydrated_bytes < DISK_BYTES:
            time.sleep(0.02)

        def write(pattern: int) -> bytes:
            """A flushed write of the machine's; what the branch then has at its place."""
            with Qmp(guest.request.directory / "qmp.sock") as qmp:
                for order in (f"write -P {pattern} 1M 4k", "flush"):
                    line = f'qemu-io -d /machine/peripheral/{disk.device}/virtio-backend "{order}"'
                    qmp.execute("human-monitor-command", command_line=line)
            with (folder / "branch").open("rb") as branch:
                return os.pread(branch.fileno(), 4096, 1 << 20)

        for number in itertools.count(1):
            qmp = DyingQmp(socket, number, carried_out=carried_out)
            with qmp, contextlib.suppress(Killed):
                Mover(plan, qmp, {}).look()
            assert write(number) == bytes([number]) * 4096
            with Qmp(socket) as again:
                mover = Mover(plan, again, {})
                mover.look()
                assert mover.moves["data"].state == MOVED
                assert write(100 + number) == bytes([100 + number]) * 4096
                assert files.copy.read_bytes() == (folder / "branch").read_bytes()
                mover.leave(disk)
            if qmp.left > 0:
                break
        assert number > 8, "the move has more orders than that"


@contextmanager
def small_disk(at: Path, size: int) -> Iterator[None]:
    at.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", at], check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", at], check=True)


def test_without_room_for_the_copy_the_move_is_given_up_and_the_guest_goes_on(folder: Path) -> None:
    with ExitStack() as parts:
        parts.enter_context(small_disk(folder / "instance/hydration", 4 << 20))
        uri = parts.enter_context(counted(folder))
        guest = parts.enter_context(machine(folder, uri))
        guest.launch()
        guest.wait_for_state("given up")
        assert "No space left" in guest.move["reason"]
        guest.goes_on()
        copy = guest.request.directory / "hydration/data.img"
        guest.wait_for("its space is given back", lambda: copy.stat().st_blocks == 0)
        guest.kill_hydrator()
        guest.goes_on()
        guest.kill_all()
        assert not stamps_missing((folder / "branch").read_bytes(), guest.stamp)


def test_a_local_disk_that_fills_up_after_the_move_is_left_and_the_guest_sees_nothing(folder: Path) -> None:
    with ExitStack() as parts:
        parts.enter_context(small_disk(folder / "instance/hydration", 40 << 20))
        uri = parts.enter_context(counted(folder))
        guest = parts.enter_context(machine(folder, uri))
        guest.launch()
        guest.wait_for_state("moved")
        guest.goes_on()
        with pytest.raises(OSError, match="No space"), (guest.request.directory / "hydration/full").open("wb") as full:
            while True:
                full.write(bytes(1 << 16))
                full.flush()
        guest.wait_for_state("given up")
        guest.goes_on(20)
        guest.kill_all()
        assert not stamps_missing((folder / "branch").read_bytes(), guest.stamp)


class Target:
    """A real target that serves a promoted branch, to be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.site = Site(folder)
        self.socket = folder / "t.sock"
        text = f'store = "store"\nlisten = "127.0.0.1:{free_port()}"\nnbd_socket = "{self.socket}"\n'
        (folder / "target.toml").write_text(text)
        with Store.create(folder / "store") as store:
            source = Source(store, "shop", disk=DISK_BYTES)
            for at in range(0, len(DATA), 1 << 20):
                source.write(1, DATA_AT + at, DATA[at : at + (1 << 20)])
            source.cut()
            source.commit()
            source.writer.close()
            self.branch = store.promote(store.find_point("shop", PointSelector()), expected_generation=1).number
        self.store = folder / "store"
        self.uri = f"nbd+unix:///shop/disk%23{self.branch}?socket={self.socket}"
        self.start()

    def start(self) -> None:
        self.process = self.site.start("target", "drengine.cli.main", "target", "run", "--config", "target.toml")
        self.site.wait("the target serves", lambda: self.socket.exists() and self.site.run)

    def kill(self) -> None:
        self.site.kill(self.process)
        self.socket.unlink()

    def content(self) -> bytes:
        """What the branch holds durably."""
        with Store.open(self.store) as store, store.head_view("shop", self.branch) as view:
            return bytes(view.read(1, 0, DISK_BYTES))


@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_killed_the_guest_goes_on_and_the_branch_has_each_flushed_stamp(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    target = Target(folder)
    with machine(folder, target.uri) as guest:
        try:
            guest.launch()
            for _ in range(6):
                time.sleep(rng.random())  # wherever that finds it
                victim = rng.choice(("target", "hydrator", "mover"))
                print(f"seed {seed}: {victim} dies; {guest.move['state']}, stamp {guest.stamp}")
                if victim == "target":
                    target.kill()
                    target.start()
                elif victim == "hydrator":
                    guest.kill_hydrator()
                else:
                    guest.kill_mover()
                    guest.launch()
                guest.goes_on(2)
            guest.wait_for_state("moved")
            guest.goes_on()
        finally:
            guest.kill_all()
            target.kill()
        assert not stamps_missing(target.content(), guest.stamp)
