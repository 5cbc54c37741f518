"""What would be missed of a source's server is said before it is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from drengine.failover.drivers.available import load_drivers
from drengine.failover.readiness import Severity
from drengine.failover.runbook.values import Mode
from drengine.model.inventory import FileSystem, FstabLine, Inventory
from tests.failover.engine.world import runbook
from tests.failover.preflight.test_list import Place
from tests.inventories import GIB, SERVER


@pytest.fixture
def place(tmp_path: Path) -> Any:
    made = Place(tmp_path)
    made.site = replace(
        made.site, drivers={**made.site.drivers, **{name: load_drivers()[name] for name in ("qemu", "iscsi")}}
    )
    yield made
    made.registry.close()
    made.world.store.close()


async def found(place: Place, inventory: Inventory | None, driver: str = "simulated", **more: Any) -> dict[str, str]:
    """What does not pass of the server, by check; nothing of it blocks."""
    if inventory:
        generation = place.world.store.source("shop").generation
        place.world.store.keep_inventory("shop", inventory, generation=generation)
    book, settings = runbook(fence=["true"]), more.pop("settings", {})
    if driver != "simulated":
        source = book.sources["shop"]
        launch = msgspec.structs.replace(source.launch, driver=driver, settings=settings)
        book = msgspec.structs.replace(book, sources={"shop": msgspec.structs.replace(source, launch=launch)})
    checks = await place.look(book, **more)
    mine = {id: each for id, each in checks.items() if each.check in ("all-replicated", "root-in-clear", "source-size")}
    assert all(each.severity is Severity.WARNS for each in mine.values())
    place.seen = set(mine)  # type: ignore[attr-defined]
    return {id.partition(":")[0]: each.message for id, each in mine.items() if not each.ok}


def exposed(*places: str, options: str = "defaults") -> Inventory:
    """A server with file systems on a disk that is not replicated."""
    systems = tuple(
        FileSystem(device=f"sdc{n}", kind="ext4", mounted_at=at, disks=("sdc",), unreplicated=("sdc",))
        for n, at in enumerate(places, start=1)
    )
    lines = tuple(FstabLine(device="x", at=at, kind="ext4", options=options) for at in places if at != "/")
    return msgspec.structs.replace(SERVER, file_systems=systems, fstab=lines)


async def test_of_a_server_that_is_replicated_whole_or_never_told_nothing_is_said(place: Place) -> None:
    assert await found(place, None) == {} and not place.seen  # type: ignore[attr-defined]
    assert await found(place, SERVER) == {}
    assert place.seen == {"all-replicated:shop"}  # type: ignore[attr-defined]
    assert await found(place, SERVER, "qemu") == {}
    assert place.seen == {"all-replicated:shop", "root-in-clear:shop", "source-size:shop"}  # type: ignore[attr-defined]


async def test_data_on_a_disk_that_is_not_replicated_is_named(place: Place) -> None:
    told = exposed("/", "/boot", "/var")
    assert await found(place, told) == {"all-replicated": "/var lies on sdc, which is not replicated"}
    said = await found(place, told, "qemu")
    assert [part.split()[0] for part in said["all-replicated"].split("; ")] == ["/", "/boot", "/var"]
    assert await found(place, exposed("/mnt/usb", options="rw,noauto")) == {}
    passing = msgspec.structs.replace(exposed("/media/stick"), fstab=())
    assert await found(place, passing) == {}, "what nobody wrote into fstab may be anything"


async def test_an_encrypted_root_and_a_smaller_machine_are_said_where_a_machine_boots(place: Place) -> None:
    told = msgspec.structs.replace(SERVER, encrypted_root=True)
    assert await found(place, told) == {}
    said = await found(place, told, "qemu", settings={"memory_mib": 2048})
    assert said == {
        "root-in-clear": "dm-0 is encrypted, or lies on what is",
        "source-size": "2.0 GiB, the source has 16.0 GiB",
    }
    nearly = msgspec.structs.replace(SERVER, memory_bytes=4 * GIB - (100 << 20))
    assert await found(place, nearly, "qemu", settings={"memory_mib": 3900}) == {}
    assert await found(place, nearly, "qemu", settings={"memory_mib": "much"}) == {}, (
        "settings are a check of their own"
    )


async def test_on_the_way_home_nothing_is_missed(place: Place) -> None:
    assert await found(place, exposed("/var"), mode=Mode.FAILBACK) == {}


@pytest.mark.parametrize("mode", [Mode.DRILL, Mode.FAILOVER])
async def test_a_network_that_machines_would_miss_is_named(place: Place, mode: Mode) -> None:
    settings = {"network": "bridge:dr-nowhere", "drill_network": "bridge:dr-no-lab"}
    book = runbook(fence=["true"])
    source = book.sources["shop"]
    launch = msgspec.structs.replace(source.launch, driver="qemu", settings=settings)
    book = msgspec.structs.replace(book, sources={"shop": msgspec.structs.replace(source, launch=launch)})
    checks = await place.look(book, mode=mode)
    missing = {each.about: each for each in checks.values() if each.check == "machine-network"}
    wanted = "dr-no-lab" if mode is Mode.DRILL else "dr-nowhere"
    assert {about: each.message for about, each in missing.items()} == {
        wanted: f"there is no bridge {wanted} on this host"
    }
    assert missing[wanted].severity is Severity.BLOCKS


@pytest.mark.parametrize(
    ("portal", "fault"),
    [("192.0.2.1", "outside the data networks"), ("127.0.0.1", ""), ("127.0.0.1:3261", "")],
)
async def test_a_portal_that_disks_may_not_leave_by_is_named(place: Place, portal: str, fault: str) -> None:
    book = runbook(fence=["true"])
    source = book.sources["shop"]
    launch = msgspec.structs.replace(source.launch, driver="iscsi", settings={"portal": portal})
    book = msgspec.structs.replace(book, sources={"shop": msgspec.structs.replace(source, launch=launch)})
    (seen,) = [each for each in (await place.look(book)).values() if each.check == "portal"]
    assert (seen.about, seen.ok) == (portal.partition(":")[0], not fault)
    assert fault in seen.message
