"""The agent on real devices tracked by the real kernel: what travels, what becomes a point, and what it survives."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drengine.model.errors import DrengineError
from drengine.model.extents import ExtentKind
from drengine.model.points import PointKind
from drengine_agent.capture.ebpf import syscalls
from drengine_agent.capture.ebpf.watch import Watch
from drengine_agent.capture.tracker import Range
from drengine_agent.config import AgentConfig, parse_config
from drengine_agent.daemon.metrics import AgentMetrics
from drengine_agent.daemon.service import Agent
from drengine_agent.errors import STATE_ON_VOLUME
from tests.agent.capture.ebpf.rig import (
    BLKDISCARD,
    BLOCK,
    MIB,
    add_partition,
    fresh_source,
    loop_device,
    needs_kernel,
    run,
)
from tests.agent.daemon.test_service import running, until
from tests.agent.replica import Replica

pytestmark = needs_kernel

ODD_BYTES = 3 * 512


class Host:
    """A source with loop devices, and what its target has."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.source = fresh_source()
        self.replica = Replica()
        self.devices: list[Path] = []
        stack.callback(Watch.detach, self.source)

    def image(self, number: int = 1) -> Path:
        return self.folder / f"disk{number}.img"

    def add_disk(self, size: int = 8 * MIB + ODD_BYTES, **more: Any) -> Path:
        """A loop device over random bytes and a hole."""
        image = self.image(len(self.devices) + 1)
        image.write_bytes(os.urandom(MIB))
        os.truncate(image, size)
        device = self.stack.enter_context(loop_device(image, size, **more))
        self.devices.append(device)
        return device

    def config(self, **more: Any) -> AgentConfig:
        return parse_config(
            {
                "source": self.source,
                "target": "127.0.0.1:1",
                "state_directory": str(self.folder / "state"),
                "tracker": "ebpf",
                "point_interval": "10ms",
                "volume": [{"name": f"v{n}", "path": str(device)} for n, device in enumerate(self.devices, 1)],
                **more,
            }
        )

    def is_equal(self) -> bool:
        """The replica is the source, and so is the newest point."""
        images = {n: self.image(n).read_bytes() for n in range(1, len(self.devices) + 1)}
        point = self.replica.points[-1].images if self.replica.points else {}
        return images == point == {n: self.replica.image(n) for n in images}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with contextlib.ExitStack() as stack:
        yield Host(tmp_path, stack)


def write(device: Path, offset: int, data: bytes) -> None:
    """Past the page cache; complete when this returns."""
    buffer = mmap.mmap(-1, len(data))
    buffer.write(data)
    fd = os.open(device, os.O_WRONLY | os.O_DIRECT)
    try:
        assert os.pwrite(fd, buffer, offset) == len(data)
    finally:
        os.close(fd)


def discard(device: Path, offset: int, length: int) -> None:
    fd = os.open(device, os.O_RDWR)
    try:
        fcntl.ioctl(fd, BLKDISCARD, struct.pack("=QQ", offset, length))
    finally:
        os.close(fd)


@pytest.mark.fault(28)
@pytest.mark.fault(63)
async def test_writes_to_several_disks_with_odd_tails_become_quiet_points(host: Host) -> None:
    disks = [host.add_disk() for _ in range(3)]
    async with running(host.config(), host.replica) as agent:
        await until(host.is_equal)
        before = host.replica.received_plain_bytes
        for number, disk in enumerate(disks):
            write(disk, 8 * MIB, bytes([number + 1]) * ODD_BYTES)
            write(disk, number * BLOCK, os.urandom(BLOCK))
        await until(host.is_equal)
        assert agent.status()["state"] == "CONTINUOUS"
    assert host.replica.received_plain_bytes - before == 3 * (BLOCK + ODD_BYTES)
    assert {point.cut.kind for point in host.replica.points} == {PointKind.QUIET}


async def test_what_is_written_while_no_agent_runs_travels_alone_and_without_a_rescan(host: Host) -> None:
    disk = host.add_disk()
    async with running(host.config(), host.replica):
        await until(host.is_equal)
    before = host.replica.received_plain_bytes
    write(disk, 5 * BLOCK, os.urandom(2 * BLOCK))
    async with running(host.config(), host.replica) as agent:
        await until(host.is_equal)
        assert agent.status()["rescans"] == {}
    assert host.replica.received_plain_bytes - before == 2 * BLOCK


async def test_partitions_are_volumes_of_their_own_and_what_lies_between_is_nobodys(host: Host) -> None:
    disk = host.add_disk(64 * MIB, partitions=True)
    first, second = add_partition(disk, 1, MIB, 4 * MIB), add_partition(disk, 2, 9 * MIB, 2 * MIB)
    volumes = [{"name": "one", "path": str(first)}, {"name": "two", "path": str(second)}]

    def is_equal() -> bool:
        image = host.image().read_bytes()
        wanted = {1: image[MIB : 5 * MIB], 2: image[9 * MIB : 11 * MIB]}
        return bool(host.replica.points) and host.replica.points[-1].images == wanted

    async with running(host.config(volume=volumes), host.replica) as agent:
        await until(is_equal)
        before = agent.traffic.captured_bytes
        write(first, BLOCK, os.urandom(BLOCK))
        write(second, BLOCK, os.urandom(BLOCK))
        write(disk, 7 * MIB, os.urandom(MIB))
        await until(is_equal)
        write(disk, 9 * MIB, os.urandom(BLOCK))  # by way of the whole disk
        await until(is_equal)
        await until(lambda: agent.status()["backlog_bytes"] == 0)
    assert agent.traffic.captured_bytes - before == 3 * BLOCK


@pytest.mark.fault(21)
@pytest.mark.fault(22)
@pytest.mark.parametrize("lost", ["rebooted", "tracking-lost"])
async def test_lost_tracking_is_a_rescan_that_sends_only_differences(
    host: Host, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = host.add_disk()
    async with running(host.config(), host.replica):
        await until(host.is_equal)
    before = host.replica.received_plain_bytes
    if lost == "rebooted":
        boot = "another boot"
        monkeypatch.setattr(syscalls, "boot_id", lambda: boot)
    else:
        Watch.detach(host.source)
    write(disk, 7 * BLOCK, os.urandom(BLOCK))  # nobody sees this
    async with running(host.config(), host.replica) as agent:
        await until(host.is_equal)
        assert list(agent.status()["rescans"]) == [lost]  # type: ignore[call-overload]
    assert host.replica.received_plain_bytes - before == BLOCK


@pytest.mark.fault(20)
async def test_doubt_while_running_is_a_rescan_with_writes_going_on(host: Host) -> None:
    disk = host.add_disk()
    async with running(host.config(), host.replica) as agent:
        await until(host.is_equal)
        agent.capture.tracker.request_rescan("tracking-lost")
        for number in range(20):
            write(disk, number * 3 * BLOCK, os.urandom(BLOCK))
        await until(lambda: agent.status()["rescans"] == {"tracking-lost": 1})
        await until(host.is_equal)


@pytest.mark.fault(24)
async def test_a_discard_becomes_zeros(host: Host) -> None:
    disk = host.add_disk()
    async with running(host.config(), host.replica):
        await until(host.is_equal)
        before, extents = host.replica.received_plain_bytes, len(host.replica.received_extents)
        discard(disk, 4 * BLOCK, 100 * BLOCK)
        await until(lambda: len(host.replica.received_extents) > extents)
        await until(host.is_equal)
    assert host.replica.received_plain_bytes == before
    assert {kind for _, kind, _, _ in host.replica.received_extents[extents:]} == {ExtentKind.ZERO}


@pytest.mark.fault(25)
async def test_a_disk_that_grows_is_declared_anew_and_older_points_keep_their_size(host: Host) -> None:
    disk = host.add_disk(8 * MIB)
    async with running(host.config(), host.replica) as agent:
        await until(host.is_equal)
        old = host.replica.points[-1]
        os.truncate(host.image(), 12 * MIB)
        run("losetup", "--set-capacity", disk)
        write(disk, 11 * MIB, os.urandom(BLOCK))
        await until(host.is_equal)
        assert "geometry-changed" in agent.status()["rescans"]  # type: ignore[operator]
    assert len(old.images[1]) == 8 * MIB
    assert len(host.replica.points[-1].images[1]) == 12 * MIB


@pytest.mark.fault(26)
async def test_blocks_that_cannot_be_read_withhold_points_until_they_can(host: Host) -> None:
    disk = host.add_disk(8 * MIB)
    async with running(host.config(), host.replica) as agent:
        await until(host.is_equal)
        whole = host.image().read_bytes()
        write(disk, 2 * MIB, b"a" * BLOCK)
        write(disk, 6 * MIB, b"b" * BLOCK)
        os.truncate(host.image(), 4 * MIB)  # reads beyond fail like a bad disk
        agent.capture.tracker.mark_dirty([Range(1, 6 * MIB, BLOCK)], reason="operator")
        await until(lambda: agent.status()["reason"] == "read-error")
        assert agent.status()["state"] == "STALLED"
        points = len(host.replica.points)
        write(disk, MIB, b"c" * BLOCK)
        errors = agent.status()["read_errors"]
        await until(lambda: agent.status()["read_errors"] > errors)  # type: ignore[operator]
        assert len(host.replica.points) == points
        with host.image().open("r+b") as file:
            file.seek(4 * MIB)
            file.write(whole[4 * MIB :])
            file.seek(6 * MIB)
            file.write(b"b" * BLOCK)
        await until(lambda: len(host.replica.points) > points)
        await until(host.is_equal)
        assert agent.status()["state"] == "CONTINUOUS"


@pytest.mark.fault(27)
async def test_another_disk_under_the_same_name_is_never_shipped(host: Host, tmp_path: Path) -> None:
    disk, other = host.add_disk(), host.add_disk()
    name = tmp_path / "by-name"
    name.symlink_to(disk)
    volume = [{"name": "v1", "path": str(name)}]
    async with running(host.config(volume=volume), host.replica) as agent:
        await until(lambda: host.replica.points)
        image = host.replica.image()
        name.unlink()
        name.symlink_to(other)
        await until(lambda: agent.status()["state"] == "STOPPED")
        assert agent.status()["reason"] == "volume-replaced"
    assert host.replica.image() == image == host.image(1).read_bytes()


@pytest.mark.fault(29)
@pytest.mark.parametrize("place", ["disk", "partition"])
async def test_a_state_directory_on_a_protected_volume_is_refused(host: Host, tmp_path: Path, place: str) -> None:
    disk = host.add_disk(64 * MIB, partitions=place == "partition")
    holder = add_partition(disk, 1, MIB, 40 * MIB) if place == "partition" else disk
    with mounted(holder, tmp_path / "mount") as mount, pytest.raises(DrengineError) as refused:
        Agent(host.config(state_directory=str(mount / "deep/state")), connector=host.replica.connect)
    assert refused.value.kind is STATE_ON_VOLUME


@contextlib.contextmanager
def mounted(device: Path, mount: Path) -> Iterator[Path]:
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", device)
    mount.mkdir()
    run("mount", device, mount)
    try:
        yield mount
    finally:
        run("umount", mount)


@contextlib.contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Do something again and again in another thread."""
    ended = threading.Event()

    def again() -> None:
        while not ended.is_set():
            work()

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.fault(29)
async def test_a_quiet_host_with_a_mounted_disk_becomes_and_stays_quiet(host: Host, tmp_path: Path) -> None:
    disk = host.add_disk(64 * MIB)
    with mounted(disk, tmp_path / "mount") as mount:
        async with running(host.config(), host.replica) as agent:
            (mount / "file").write_bytes(os.urandom(MIB))
            os.sync()
            await until(host.is_equal)
            watch = agent.capture.tracker._watch  # type: ignore[attr-defined]
            await until(lambda: watch.answer == watch.cleared)
            shipped, answer = agent.traffic.captured_bytes, watch.answer
            for _ in range(3):  # several saves of state, reports and checks later
                agent.replication._save()
                await asyncio.to_thread(agent.capture.check)
            await until(lambda: agent.status()["lag_seconds"] < 1.0)  # type: ignore[operator]
            assert (agent.traffic.captured_bytes, watch.answer) == (shipped, answer)


@pytest.mark.fault(63)
async def test_a_point_shows_all_disks_at_the_same_moment(host: Host) -> None:
    first, second = host.add_disk(), host.add_disk()
    number = 0

    def order() -> None:
        nonlocal number
        number += 1
        for disk in (first, second):
            write(disk, 0, number.to_bytes(8, "little") + bytes(BLOCK - 8))
        threading.Event().wait(0.02)

    async with running(host.config(point_interval="1ms"), host.replica):
        await until(lambda: host.replica.points)
        with meanwhile(order):
            count = len(host.replica.points)
            await until(lambda: len(host.replica.points) > count + 20, 60)
        await until(host.is_equal)
    for point in host.replica.points[count:]:
        ahead, behind = (int.from_bytes(point.images[n][:8], "little") for n in (1, 2))
        assert behind <= ahead <= behind + 1


async def test_a_busy_file_system_gets_frozen_points_that_need_no_repair(host: Host, tmp_path: Path) -> None:
    disk = host.add_disk(64 * MIB)
    with mounted(disk, tmp_path / "mount") as mount:
        number = 0

        def busy() -> None:
            nonlocal number
            number += 1
            with (mount / f"file{number % 50}").open("wb") as file:
                file.write(os.urandom(20_000))
                os.fsync(file.fileno())

        cuts = {"kinds": "frozen", "frozen_after": "300ms", "longest_freeze": "5s"}
        async with running(host.config(cuts=cuts), host.replica) as agent:
            with meanwhile(busy):
                await until(lambda: len(host.replica.points) >= 4, 60)
            status = agent.status()
            assert 0 < status["freeze_seconds_last"] <= status["freeze_seconds_longest"] < 5.5  # type: ignore[operator]
    assert {point.cut.kind for point in host.replica.points} == {PointKind.FROZEN}
    for number, point in enumerate(host.replica.points[-3:]):
        image = tmp_path / f"point{number}.img"
        image.write_bytes(point.images[1])
        run("e2fsck", "-fn", image)


async def test_raw_devices_get_forced_cuts_with_nothing_to_freeze(host: Host) -> None:
    disk = host.add_disk()

    def busy() -> None:
        write(disk, 5 * BLOCK, os.urandom(BLOCK))
        time.sleep(0.05)  # nothing holds these writes up: a cut is made where none falls into it

    async with running(host.config(cuts={"kinds": "frozen", "frozen_after": "300ms"}), host.replica) as agent:
        with meanwhile(busy):
            await until(lambda: host.replica.points)
        failed = agent.status()["cuts_failed"]
    assert "freeze-refused" not in failed  # type: ignore[operator]
    assert {point.cut.kind for point in host.replica.points} == {PointKind.FROZEN}


async def test_reading_is_paced_and_freezes_do_not_wait(host: Host) -> None:
    host.add_disk(2 * MIB)
    async with running(host.config(ebpf={"read_limit": "4MiB/s"}), host.replica) as agent:
        await until(host.is_equal)
        assert agent.status()["direct_read_bytes"] == 2 * MIB
        assert agent.status()["read_waited_seconds"] > 0.1  # type: ignore[operator]


async def test_somebody_who_waits_for_a_point_gets_a_frozen_one_before_its_time(host: Host, tmp_path: Path) -> None:
    disk = host.add_disk(64 * MIB)
    with mounted(disk, tmp_path / "mount") as mount:

        def busy() -> None:
            (mount / "file").write_bytes(os.urandom(20_000))
            fd = os.open(mount / "file", os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)

        cuts = {"kinds": "quiet, frozen", "frozen_after": "1h"}
        async with running(host.config(cuts=cuts), host.replica) as agent:
            await until(lambda: host.replica.points)
            with meanwhile(busy):
                await asyncio.wait_for(agent.cut("before the change"), 30)
    assert "before the change" in [point.cut.label for point in host.replica.points]


async def test_every_reason_is_counted_from_the_start_and_every_figure_of_the_tracker_is_shown(host: Host) -> None:
    disk = host.add_disk()
    metrics = AgentMetrics(host.source)
    async with running(host.config(), host.replica) as agent:
        metrics.watch(agent)
        await until(host.is_equal)
        write(disk, 0, os.urandom(BLOCK))
        await until(host.is_equal)
        shown = metrics.render().decode()
    for line in (
        f'drengine_agent_rescans_total{{reason="rebooted",source="{host.source}"}} 0.0',
        f'drengine_agent_cuts_failed_total{{reason="freeze-too-long",source="{host.source}"}} 0.0',
        f'drengine_agent_cuts_total{{kind="frozen",source="{host.source}"}} 0.0',
        f'drengine_agent_tracker_events_total{{source="{host.source}"}} 1.0',
        f'drengine_agent_freeze_longest_seconds{{source="{host.source}"}} 0.0',
    ):
        assert line in shown, shown
    assert f'drengine_agent_direct_read_bytes_total{{source="{host.source}"}}' in shown
