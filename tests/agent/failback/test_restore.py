"""`drengine-agent restore` at a real target: empty disks become a point's; broken off, taken up again, refused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from drengine.model.grants import Access
from drengine.model.points import PointSelector
from drengine.terminal import main
from drengine_agent.capture.backing import Volume
from drengine_agent.cli.main import commands
from tests.recovery.replica import SIZE, make
from tests.target.agent import Site, running

pytestmark = pytest.mark.timeout(120)


async def restored(site: Site, disk: Path, *more: str, point: str = "") -> int:
    """Type it in a thread: the target lives in this one."""
    host, port = site.address
    id = point or site.store.find_point("shop", PointSelector()).id
    given = ["restore", id, "--source", "shop", "--target", f"{host}:{port}", "--volume", f"data={disk}", "--yes"]
    return await asyncio.to_thread(main, commands, [*given, "--json", *more])


def granted(site: Site) -> None:
    site.store.grants.give("shop", 1, Access.REVERSE, holder="agent/shop")


@pytest.mark.parametrize("larger", [0, 70000])
async def test_an_empty_disk_becomes_the_points(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], larger: int
) -> None:
    points = make(tmp_path / "store")
    disk = tmp_path / "disk"
    disk.write_bytes(b"\xff" * (SIZE + larger))
    async with running(tmp_path / "store") as site:
        granted(site)
        for id, content in points.items():  # to the newer one only what differs travels
            assert await restored(site, disk, point=id) == 0
            told = json.loads(capsys.readouterr().out)
            assert told["bytes_total"] == SIZE
            assert disk.read_bytes() == content + b"\xff" * larger
        assert 0 < told["bytes_shipped"] < SIZE // 2
        assert await restored(site, disk, point=id) == 0
        assert json.loads(capsys.readouterr().out)["bytes_written"] == 0, "it is known by its hashes"


async def test_what_was_broken_off_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    points = make(tmp_path / "store")
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(SIZE))
    real, left = Volume.write, [12]

    def failing(volume: Volume, offset: int, data: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(5, "the cable is loose")
        real(volume, offset, data)

    async with running(tmp_path / "store") as site:
        granted(site)
        with monkeypatch.context() as patch:
            patch.setattr(Volume, "write", failing)
            assert await restored(site, disk) != 0
        assert "the cable is loose" in capsys.readouterr().err
        assert await restored(site, disk) == 0
        told = json.loads(capsys.readouterr().out)
    assert disk.read_bytes() == list(points.values())[-1]
    assert told["bytes_written"] > 0


async def test_what_can_not_be_is_refused_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "store")
    disk, small = tmp_path / "disk", tmp_path / "small"
    disk.write_bytes(bytes(SIZE))
    small.write_bytes(bytes(SIZE - 1))
    async with running(tmp_path / "store") as site:
        assert await restored(site, disk) != 0
        assert "no run has ordered it" in capsys.readouterr().err
        granted(site)
        assert await restored(site, small) == 178
        assert f"data has {SIZE} bytes, and disk data ({small}) only {SIZE - 1}" in capsys.readouterr().err
        assert await restored(site, disk, "--volume", f"root={small}") == 178
        assert "no volume 'root'; there are data" in capsys.readouterr().err
        assert await restored(site, disk, point="latest") != 0
        assert "named by its id" in capsys.readouterr().err
        assert await restored(site, tmp_path / "absent") == 70
    assert (disk.read_bytes(), small.read_bytes()) == (bytes(SIZE), bytes(SIZE - 1))
