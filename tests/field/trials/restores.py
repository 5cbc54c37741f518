"""Restores: interrupted, over old data, to smaller places, links, other sectors; points by their time and label."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

from tests.agent.capture.ebpf.rig import loop_device, opened
from tests.field.ground import Ground, Pair, first_difference
from tests.field.load import scatter
from tests.field.trial import trial

MIB, GIB = 1 << 20, 1 << 30
DISK_BYTES = 192 * MIB
TIMES = 10


@trial(seconds_max=120)
def old_data_under_a_sparse_restore_is_gone(ground: Ground) -> None:
    """A sparse point is restored over a file and a device full of old data: nothing of it shines through."""
    ground.needs_kernel()
    pair = Pair(ground, {"data": ground.image("data", 32 * MIB, filled=MIB)}).start()
    scatter(ground, pair, "data", 30)
    pair.until_equal()
    point = pair.newest()
    assert point
    file = ground.image("old", 40 * MIB, filled=40 * MIB)
    device = ground.disk("device", 32 * MIB, filled=32 * MIB)
    for place in (file, device):
        ground.drengine("restore", point.id, "--store", pair.store, "--to", f"data={place}", "--force")
        assert first_difference(pair.store, point, "data", place) is None, f"{place} is not the point"


@trial(seconds_max=180)
def an_interrupted_restore_of_several_disks_goes_on(ground: Ground) -> None:
    """SIGINT while the second disk of two is restored; the same command again ends with both equal."""
    pair = Pair(ground, {name: ground.image(name, DISK_BYTES, filled=DISK_BYTES) for name in ("one", "two")})
    pair.start()
    pair.until_equal()
    point, folder = pair.newest(), ground.folder / "restored"
    assert point
    folder.mkdir()
    command = ("restore", point.id, "--store", str(pair.store), "--to", str(folder))
    for _ in range(ground.times(2)):
        for each in folder.iterdir():
            each.unlink()
        process = ground.site.start("restore", "drengine.cli.main", *command)
        ground.until(
            "the first disk is there",
            lambda process=process: (folder / "one.img").exists() or process.poll() is not None,
        )
        time.sleep(ground.rng.uniform(0.02, 0.2))
        assert process.poll() is None, "the restore ended before it could be interrupted"
        status = ground.site.stop(process, signal.SIGINT)
        assert status, "the restore ended before it could be interrupted"
        ground.drengine(*command)
        for name in ("one", "two"):
            assert first_difference(pair.store, point, name, folder / f"{name}.img") is None, name
        assert sorted(each.name for each in folder.iterdir()) == ["one.img", "two.img"], "something is left over"


@trial(seconds_max=90)
def two_names_of_one_file_are_no_two_destinations(ground: Ground) -> None:
    """Two volumes are restored to one file by two names: refused before anything is written."""
    pair = Pair(ground, {name: ground.image(name, MIB, filled=MIB) for name in ("one", "two")}).start()
    pair.until_equal()
    real, link = ground.folder / "real", ground.folder / "link"
    real.mkdir()
    link.symlink_to(real)
    (ground.folder / "hard").write_bytes(b"old")
    (ground.folder / "other").hardlink_to(ground.folder / "hard")
    for one, two in ((real / "x", link / "x"), (ground.folder / "hard", ground.folder / "other")):
        said = ground.drengine(
            "restore", "latest", "--store", pair.store, "--to", f"one={one}", "--to", f"two={two}", "--force", "--json",
            ok=False,
        )  # fmt: skip
        assert said.refusal()["error"] not in ("internal", ""), said
        assert not (real / "x").exists()
    assert (ground.folder / "hard").read_bytes() == b"old"


@trial(seconds_max=120)
def a_time_that_is_shown_names_its_point(ground: Ground) -> None:
    """Each time that `points` shows, in its table and as JSON, given as `before:`, means the point beside it."""
    pair = Pair(ground, {"data": ground.image("data", MIB)}).start()
    for _ in range(TIMES):
        before = pair.newest()
        scatter(ground, pair, "data", 1)
        ground.until("another point", lambda before=before: pair.newest() != before)
        time.sleep(0.1)
    shown = {each["id"]: each["time"] for each in ground.drengine("points", "--store", pair.store, "--json").json()}
    table = ground.drengine("points", "--store", pair.store, "--all", env={"COLUMNS": "200"}).output
    rows = dict(re.findall(r"\b(\d+-\d+)\b[ │|]+(\d{4}-\d\d-\d\d[ T][\d:.]+\d(?:Z|\+00:00| UTC)?)", table))
    chosen = list(shown)[-TIMES:]
    assert set(chosen) <= rows.keys(), f"the table lacks points: {table}"
    wrong = []
    for point in chosen:
        for text in {shown[point], rows[point]}:
            found = ground.drengine("verify", f"before:{text}", "--store", pair.store, "--json").json()["id"]
            if found != point:
                wrong.append(f"{text} is shown for {point} and means {found}")
    assert not wrong, "; ".join(wrong)
    ground.measured["times tried"] = len(chosen)


@trial(seconds_max=150)
def a_thin_disk_is_restored_to_a_small_file_system(ground: Ground) -> None:
    """A disk of 400 GiB that holds 8 MiB is restored to a file system of 256 MiB: what counts is what it holds."""
    ground.needs_kernel()
    ground.needs("mkfs.xfs")
    pair = Pair(ground, {"data": ground.image("data", 400 * GIB, filled=8 * MIB)}).start()
    small = ground.disk("small", 320 * MIB)
    ground.run("mkfs.xfs", "-q", "-f", small)
    with ground.mounted(small, "mount") as place:
        begun = time.monotonic()
        ground.drengine("restore", "latest", "--store", pair.store, "--to", f"data={place / 'data.img'}")
        ground.measured["seconds"] = round(time.monotonic() - begun, 1)
        restored = place / "data.img"
        assert restored.stat().st_size == 400 * GIB
        with restored.open("rb") as one, (ground.folder / "data.img").open("rb") as two:
            assert one.read(8 * MIB) == two.read(8 * MIB)
        restored.unlink()
        (place / "ballast").write_bytes(ground.rng.randbytes(64 * MIB))
        _fill(place / "rest")
        said = ground.drengine(
            "restore", "latest", "--store", pair.store, "--to", f"data={restored}", "--json", ok=False
        )
        assert said.refusal()["error"] == "destination-too-small", said


@trial(seconds_max=90)
def a_device_by_its_link_is_restored_to(ground: Ground) -> None:
    """`--to data=/dev/disk/by-id/...`: the link is followed to the device, and stays a link."""
    ground.needs_kernel()
    pair = Pair(ground, {"data": ground.image("data", 16 * MIB, filled=MIB)}).start()
    pair.until_equal()
    device = ground.disk("device", 16 * MIB)
    link = ground.folder / "by-id" / "wwn-0x5000"
    link.parent.mkdir()
    link.symlink_to(f"../../..{device}")
    ground.drengine("restore", "latest", "--store", pair.store, "--to", f"data={link}", "--force")
    point = pair.newest()
    assert point
    assert first_difference(pair.store, point, "data", device) is None
    assert link.is_symlink()


@trial(seconds_max=120)
def a_disk_of_4096_byte_sectors_says_so_at_its_restore(ground: Ground) -> None:
    """A disk with sectors of 4096 bytes is restored to one of 512: the difference is told."""
    ground.needs_kernel()
    disk = ground.disk("native", 64 * MIB, sector=4096, filled=MIB)
    pair = Pair(ground, {"data": disk}, tracker="ebpf").start()
    pair.until_equal()
    shown = ground.drengine("points", "--store", pair.store, "--json").json()[-1]["volumes"][0]
    assert 4096 in shown.values(), f"points do not tell the sector size: {shown}"
    same = ground.enter(loop_device(ground.image("same", 64 * MIB), 64 * MIB, sector=4096))
    other = ground.enter(loop_device(ground.image("other", 64 * MIB), 64 * MIB, sector=512))
    quiet = ground.drengine("restore", "latest", "--store", pair.store, "--to", f"data={same}", "--force")
    assert "sector" not in quiet.output + quiet.error, quiet
    loud = ground.drengine("restore", "latest", "--store", pair.store, "--to", f"data={other}", "--force", ok=False)
    assert "4096" in loud.output + loud.error, loud
    assert "512" in loud.output + loud.error, loud


@trial(seconds_max=120)
def a_label_selects_its_point_everywhere(ground: Ground) -> None:
    """A label given to `cut` is taken by verify, restore, export, pin; what looks like another selector is refused."""
    pair = Pair(ground, {"data": ground.image("data", 2 * MIB)}).start()
    agent = ("--config", str(pair.agent_file), "--json")
    for name in ("20261125", "latest", "1-5", "before:2026-11-25T10:00:00Z", "2026-11-25 10:00"):
        said = ground.agent("cut", "--label", name, *agent, ok=False)
        assert said.refusal()["error"] not in ("internal", ""), said
    assert not [each for each in pair.points() if each.label]
    scatter(ground, pair, "data", 10)
    pair.until_equal()
    ground.agent("cut", "--label", "before-upgrade", *agent)
    labelled = ground.until("the point", lambda: next((p for p in pair.points() if p.label == "before-upgrade"), None))
    scatter(ground, pair, "data", 10)
    pair.until_equal()
    store = ("--store", str(pair.store))
    assert ground.drengine("verify", "before-upgrade", *store, "--json").json()["id"] == labelled.id
    place = ground.folder / "restored.img"
    ground.drengine("restore", "before-upgrade", *store, "--to", f"data={place}")
    assert first_difference(pair.store, labelled, "data", place) is None
    ground.drengine("pin", "before-upgrade", *store)
    process, told = pair.export("before-upgrade")
    assert told["point"] == labelled.id
    ground.site.stop(process)


@trial(seconds_max=90)
def a_hang_up_ends_an_export_as_an_interrupt_does(ground: Ground) -> None:
    """HUP on `export --writable` leaves no branch open and no socket, as INT and TERM do."""
    pair = Pair(ground, {"data": ground.image("data", MIB)}).start()
    left = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        place = ground.folder / f"{number.name}.sock"
        before = _open_branches(ground, pair)
        process, _ = pair.export("latest", "--writable", "--socket", str(place))
        ground.site.stop(process, number)
        left[number.name] = (_open_branches(ground, pair) - before, place.exists())
    ground.measured["left (branches, socket)"] = json.dumps(left)
    assert left["SIGHUP"] == left["SIGTERM"] == left["SIGINT"], left
    assert not left["SIGHUP"][1], left


def _open_branches(ground: Ground, pair: Pair) -> int:
    branches = ground.drengine("branches", "--store", pair.store, "--json").json()
    return sum(not each["closed"] for each in branches)


def _fill(path: Path) -> None:
    """Use up what is free."""
    with opened(path, flags=0o101) as fd:
        import os

        try:
            while os.write(fd, bytes(MIB)):
                pass
        except OSError:
            os.fsync(fd)
