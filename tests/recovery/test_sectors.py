"""A disk of 4096-byte sectors on its way: shown, warned of, and read again where it is served, attached, restored."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from drengine.control.attach import AttachOrder, StandbySettings
from drengine.linux.devices import sector_bytes
from drengine.model.points import Cut, Mark, PointKind, VolumeGeometry
from drengine.nbd.client import NbdClient
from drengine.nbd.hydrator import open_hydration
from drengine.store.store import Store
from drengine_agent.standby.workload import Workload
from tests.agent.cuts.disks import needs_root
from tests.agent.standby.test_standby import needs_root as needs_fuse
from tests.linux.loops import loop_device
from tests.linux.test_sectors import disk, gpt, table_of
from tests.recovery.test_commands import Export, Shell
from tests.target.agent import data_batch

pytestmark = [pytest.mark.fault(76), pytest.mark.timeout(60)]
SIZE = 16 << 20
NAMED = uuid.UUID("5c3c3e7e-7a0e-4f0e-9c53-0d1c2f0a4096")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """One point of a disk with a GPT."""
    place = tmp_path / "store"
    with Store.create(place) as made:
        made.ensure_source("shop")
        writer = made.writer("shop", generation=1)
        geometry = VolumeGeometry(1, "data", "block:wwid=naa.5:sector=4096", SIZE)
        writer.append_geometry(1, Mark(), (geometry,), generation=1)
        writer.append_batch(2, Mark(), data_batch([(0, gpt(4096, SIZE, NAMED))]), generation=1)
        writer.append_cut(3, Mark(), Cut(1, PointKind.QUIET), generation=1)
        writer.commit(generation=1)
        writer.close()
    return place


@pytest.fixture
def shell(store: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(store, capsys)


@pytest.fixture
def exported(store: Path, tmp_path: Path) -> Iterator[str]:
    export = Export("latest", "--writable", "--store", str(store), "--socket", str(tmp_path / "nbd.sock"))
    try:
        yield export.told["uris"][0]
    finally:
        export.end()


def test_points_tell_of_them(shell: Shell) -> None:
    (point,) = json.loads(shell("points", "--json"))
    assert point["volumes"][0]["sector_bytes"] == 4096
    shell("points")
    assert "sectors of 4096 bytes" in shell.said


def test_a_restore_to_a_file_says_how_to_attach_it(shell: Shell, tmp_path: Path) -> None:
    shell("restore", "latest", "--to", f"data={tmp_path / 'data.img'}")
    assert "--sector-size 4096" in shell.said
    told = json.loads(shell("restore", "latest", "--json", "--to", f"data={tmp_path / 'again.img'}"))
    assert (told["volumes"][0]["sector_bytes"], told["volumes"][0]["destination_sector_bytes"]) == (4096, 0)


@needs_root
def test_a_restore_to_a_disk_of_other_sectors_warns_and_to_one_of_the_same_does_not(
    shell: Shell, tmp_path: Path
) -> None:
    with loop_device(tmp_path / "small", SIZE) as device:
        shell("restore", "latest", "--write-device", "--to", f"data={device}")
        assert f"{device} has 512" in shell.said
        assert table_of(device) == ""
    with disk(tmp_path / "big", 4096, size=SIZE) as device:
        shell("restore", "latest", "--write-device", "--to", f"data={device}")
        assert "sectors" not in shell.said
        assert table_of(device) == str(NAMED)


def test_an_export_tells_its_clients_and_so_does_what_hydrates_it(exported: str, tmp_path: Path) -> None:
    with NbdClient.of(exported) as client:
        assert client.block_bytes_min == 4096
        assert client.read(4096, 8) == b"EFI PART"
        client.write(513, b"smaller")
    hydration = open_hydration(exported, tmp_path / "copy")
    assert hydration.sector_bytes == 4096
    hydration.close()


@needs_fuse
def test_a_recovery_host_attaches_it_with_its_sectors(exported: str, tmp_path: Path) -> None:
    order = AttachOrder(
        instance="t4096", source="shop", disks={"data": exported}, settings=StandbySettings(), isolated=False
    )
    workload = Workload(order, tmp_path / "t4096")
    try:
        device = Path(workload.start(lambda _: None)["devices"]["data"])
        assert sector_bytes(device) == 4096
        assert table_of(device) == str(NAMED)
    finally:
        workload.stop()
