"""The way home for disks of a running host: block devices that the agent tracks or scans, and that file systems use."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from drengine.model.errors import DrengineError
from drengine_agent.capture.ebpf.watch import Watch
from tests.agent.capture.ebpf.rig import fresh_source, loop_device, needs_kernel, run
from tests.agent.failback.home import MIB, Home, at_home, until

pytestmark = [pytest.mark.timeout(180), needs_kernel]
SIZE = 24 * MIB
SOURCE = fresh_source()
OPTIONS: dict[str, dict[str, Any]] = {
    "scan": {"scan": {"interval": "1h", "assume_quiescent": True}},
    "ebpf": {"cuts": {"kinds": "quiet"}},
}


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    with ExitStack() as stack:
        stack.callback(Watch.detach, SOURCE)
        yield stack.enter_context(loop_device(tmp_path / "disk1.img", SIZE))


def write(device: Path, offset: int, data: bytes) -> None:
    """As production does, to the device itself."""
    with device.open("r+b", buffering=0) as file:
        file.seek(offset)
        file.write(data)
        os.fsync(file.fileno())


async def stale(home: Home, device: Path) -> Any:
    """The source was lost; both sides wrote; it is fenced."""
    agent = home.agent
    assert agent is not None
    write(device, 0, os.urandom(MIB))
    agent.sync()
    await home.caught_up()
    agent.pause()
    await until(lambda: agent.pipeline is None)
    write(device, 5 * MIB, b"only here" * 1000)
    branch = home.promote()
    await home.work(branch, [(MIB, os.urandom(100_000)), (9 * MIB, b"only there" * 5000)])
    await agent.fence(1)
    agent.resume()
    return branch


@pytest.mark.parametrize("tracker", ["scan", "ebpf"])
async def test_a_device_comes_home_and_nothing_is_resent(tmp_path: Path, device: Path, tracker: str) -> None:
    volume = [{"name": "disk1", "path": str(device)}]
    async with at_home(tmp_path, tracker=tracker, source=SOURCE, volume=volume, **OPTIONS[tracker]) as home:
        branch = await stale(home, device)
        agent = home.agent
        assert agent is not None
        had = home.disks()
        beyond = home.diverge()
        kept = await agent.preserve(beyond.number, beyond.generation)
        assert 0 < kept.bytes_shipped < 50_000
        assert home.shown(home.store.points(home.source, branch=beyond.number)[-1]) == had
        point = await home.last_point(branch)
        report = await agent.reverse(point.id)
        assert home.disks() == home.shown(point)
        assert report.bytes_compared == SIZE and report.bytes_written < 200_000
        await home.work(branch, [(0, b"and on" * 100)])
        point = await home.last_point(branch)
        assert (await agent.reverse(point.id)).bytes_written <= 8192
        handed = home.promote(point)
        sent = agent.traffic.plain_bytes
        await agent.release(handed.generation, handed.number)
        await until(lambda: home.store.points(home.source, branch=handed.number))
        assert agent.traffic.plain_bytes == sent, "something was resent"
        write(device, 7 * MIB, b"home again")
        agent.sync()
        await home.caught_up()


@pytest.mark.parametrize("tracker", ["scan", "ebpf"])
async def test_a_mounted_device_is_not_overwritten(tmp_path: Path, device: Path, tracker: str) -> None:
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed")
    run("mkfs.ext4", "-q", device)
    volume = [{"name": "disk1", "path": str(device)}]
    place = tmp_path / "mounted"
    place.mkdir()
    async with at_home(tmp_path, tracker=tracker, source=SOURCE, volume=volume, **OPTIONS[tracker]) as home:
        branch = await stale(home, device)
        agent = home.agent
        assert agent is not None
        point, before = await home.last_point(branch), home.disks()
        run("mkfs.ext4", "-q", "-F", device)
        run("mount", device, place)
        try:
            beyond = home.diverge()
            for work in (agent.reverse(point.id, force=True), agent.preserve(beyond.number, beyond.generation)):
                with pytest.raises(DrengineError, match="in use by a mount") as refused:
                    await work
                assert refused.value.kind.id == "reverse-refused"
        finally:
            run("umount", place)
        assert before
        await agent.reverse(point.id, force=True)
        assert home.disks() == home.shown(point)
