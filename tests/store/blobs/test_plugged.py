"""A storage that an installed package brings: named by the STORE file, found by its entry point, used end to end."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import xxhash

from drengine.model.errors import DrengineError
from drengine.model.points import PointSelector
from drengine.store.blobs.available import StorageName, open_storage
from drengine.store.errors import STORAGE_UNAVAILABLE, STORE_VERSION
from drengine.store.identity import FORMAT_NAME, IDENTITY_NAME, Identity, read_store_file
from drengine.store.store import Store
from tests.store.harness import Source, check_point
from tests.target.agent import SIZE, running

GROUP = "drengine.storages"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with an installed package that brings storages, and broken ones."""
    folder = tmp_path / "packages"
    info = folder / "rows-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rows\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{GROUP}]\nrows = tests.store.blobs.rows:RowStorage\nlocal = tests.store.blobs.rows:RowStorage\n"
        "gone = tests.store.blobs.nowhere:Storage\nbroken = tests.store.blobs.rows:RowAppender.append\n"
    )
    monkeypatch.syspath_prepend(folder)
    return folder


def rows_in(tmp_path: Path) -> StorageName:
    return StorageName("rows", str(tmp_path / "rows.sqlite"))


def segments_in(store: Path) -> list[Path]:
    return [path for path in store.glob("segments/**/*") if path.suffix in (".seg", ".map")]


@pytest.mark.usefixtures("packages")
def test_points_rest_in_it_and_are_read_back_compacted_and_rebuilt(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Store.create(path, stored_in=rows_in(tmp_path)) as store:
        source = Source(store, root=300_000, data=100_001)
        for _ in range(6):
            source.write_random(5)
            source.cut()
            source.commit()
        source.check()
        source.writer.close()
    assert not segments_in(path)
    with Store.open(path) as store:
        source.store = store
        source.check()
        assert not store.scrub().records_damaged
        store.compact()
        source.check()
    assert Store.rebuild(path).lost == []
    with Store.open(path) as store:
        for point in store.points("web1"):
            check_point(store, point, source.points[point.id])


async def test_a_target_ingests_into_it_and_a_command_reads_it(tmp_path: Path, packages: Path) -> None:
    path = tmp_path / "store"
    Store.create(path, stored_in=rows_in(tmp_path)).close()
    async with running(path) as site:
        agent = await site.join()
        await agent.declare()
        await agent.write(65536, b"x" * 4096)
        last = await agent.cut()
        await agent.acknowledged(last)
        point = site.store.find_point("shop", PointSelector())
        with site.store.view(point) as view:
            assert view.read(1, 65536, 8192) == b"x" * 4096 + bytes(4096)
    assert not segments_in(path)
    disk = tmp_path / "disk.img"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(packages), *sys.path])}
    command = [sys.executable, "-m", "drengine.cli.main", "restore", "--store", str(path), "latest", "--json"]
    command += ["--to", f"data={disk}"]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    assert disk.stat().st_size == SIZE
    assert disk.read_bytes()[65536 : 65536 + 4096] == b"x" * 4096


@pytest.mark.usefixtures("packages")
def test_without_its_package_a_store_is_refused_and_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    Store.create(path, stored_in=rows_in(tmp_path)).close()
    monkeypatch.setattr(sys, "path", [each for each in sys.path if "packages" not in each])
    for act in (Store.open, Store.rebuild):
        with pytest.raises(DrengineError, match="there is no storage 'rows'") as caught:
            act(path)
        assert caught.value.kind is STORAGE_UNAVAILABLE


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("name", ["gone", "broken", "", "../local"])
def test_what_cannot_be_loaded_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(DrengineError) as caught:
        Store.create(tmp_path / "store", stored_in=StorageName(name, "place"))
    assert caught.value.kind is STORAGE_UNAVAILABLE
    assert not (tmp_path / "store").exists()


@pytest.mark.usefixtures("packages")
def test_a_package_cannot_take_the_place_of_ours(tmp_path: Path) -> None:
    assert type(open_storage(StorageName(), tmp_path)).__name__ == "LocalStorage"


def test_a_local_store_keeps_the_file_that_every_version_reads(tmp_path: Path) -> None:
    Store.create(tmp_path / "store").close()
    line = (tmp_path / "store" / IDENTITY_NAME).read_bytes().split(b"\n")[0]
    assert set(json.loads(line)) == {"format", "version", "id"}
    assert json.loads(line)["version"] == 1
    assert read_store_file(tmp_path / "store")[1] == StorageName()


@pytest.mark.usefixtures("packages")
def test_a_version_that_knows_no_storages_refuses_a_store_that_has_one(tmp_path: Path) -> None:
    Store.create(tmp_path / "store", stored_in=rows_in(tmp_path)).close()
    line = (tmp_path / "store" / IDENTITY_NAME).read_bytes().split(b"\n")[0]
    assert json.loads(line)["version"] == 2, "the first version refuses whatever is greater than 1"


def test_a_version_that_is_not_known_yet_is_refused(tmp_path: Path) -> None:
    line = msgspec.json.encode(Identity(FORMAT_NAME, 3, "ab" * 16))
    (tmp_path / IDENTITY_NAME).write_bytes(line + b"\n" + xxhash.xxh3_64_hexdigest(line).encode() + b"\n")
    with pytest.raises(DrengineError) as caught:
        Store.open(tmp_path)
    assert caught.value.kind is STORE_VERSION
