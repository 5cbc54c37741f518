"""A real file system of 16 MiB that fills up: nothing acknowledged is lost, and space freed is used again."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from drengine.model.errors import DrengineError
from drengine.store.errors import STORE_FULL
from drengine.store.store import Store
from tests.crash.stamps import KEEP_NONE, OPTIONS, append_next, check
from tests.crash.workload import SOURCE

SEED = 6
DISK_BYTES = 16 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    for tool in ("mkfs.ext4", "mount", "umount"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    image, mounted = tmp_path / "image", tmp_path / "disk"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    mount = subprocess.run(["mount", "-o", "loop", str(image), str(mounted)], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip(f"loop devices are not to be had here: {mount.stderr.decode().strip()}")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def fill(path: Path, leave_bytes: int) -> None:
    """Take all space but `leave_bytes`."""
    state = os.statvfs(path.parent)
    wanted = state.f_bavail * state.f_frsize - leave_bytes
    with suppress(OSError), path.open("ab") as file:
        if wanted > 0:
            os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), wanted)


def replicate_until_full(store: Store, acknowledged: int) -> int:
    """Go on until the disk is full; the position acknowledged last."""
    writer = store.writer(SOURCE, generation=1)
    try:
        for _ in range(400):
            for _ in range(3):
                append_next(writer, SEED)
            acknowledged = writer.commit(generation=1).sequence
    except DrengineError as error:
        assert error.kind is STORE_FULL
        assert error.kind.retryable
        assert writer.durable.sequence == acknowledged
        assert writer.appended_sequence == acknowledged, "the writer is not back at its durable position"
    else:
        pytest.fail("the disk was never full")
    finally:
        writer.close()
    return acknowledged


@pytest.mark.fault(6)
def test_a_disk_that_fills_up_at_many_moments_loses_nothing_and_goes_on(small_disk: Path) -> None:
    filler = small_disk / "filler"
    with Store.create(small_disk / "store", options=OPTIONS) as store:
        store.ensure_source(SOURCE)
        acknowledged = 0
        # Each turn leaves a little more room, so that another call is the one that fails.
        for turn in range(24):
            fill(filler, 96 * 1024 + turn * 12 * 1024)
            acknowledged = replicate_until_full(store, acknowledged)
            check(store, SEED, acknowledged)
            filler.unlink()
            store.retain(KEEP_NONE, 0)
            store.compact()
    with Store.open(small_disk / "store", options=OPTIONS) as store:
        assert check(store, SEED, acknowledged) == acknowledged


@pytest.mark.fault(6)
def test_the_same_writer_resumes_when_space_is_freed(small_disk: Path) -> None:
    filler = small_disk / "filler"
    with Store.create(small_disk / "store", options=OPTIONS) as store:
        store.ensure_source(SOURCE)
        writer = store.writer(SOURCE, generation=1)
        fill(filler, 150_000)
        full = 0
        for _ in range(200):
            try:
                for _ in range(3):
                    append_next(writer, SEED)
                writer.commit(generation=1)
            except DrengineError as error:
                assert error.kind is STORE_FULL
                full += 1
                filler.unlink(missing_ok=True)
                if full > 3:
                    break
                fill(filler, 40_000 * full)
                filler.unlink()
        durable = writer.durable.sequence
        writer.close()
        assert full
        assert check(store, SEED, durable) == durable


@pytest.mark.fault(7)
def test_a_compaction_that_finds_no_room_leaves_everything_as_it_was(small_disk: Path) -> None:
    filler = small_disk / "filler"
    with Store.create(small_disk / "store", options=OPTIONS) as store:
        store.ensure_source(SOURCE)
        writer = store.writer(SOURCE, generation=1)
        for _ in range(60):
            for _ in range(3):
                append_next(writer, SEED)
            writer.commit(generation=1)
        durable = writer.durable.sequence
        failures = 0
        for leave_bytes in range(0, 160 * 1024, 16 * 1024):
            fill(filler, leave_bytes)
            try:
                store.retain(KEEP_NONE, 0)
                store.compact()
            except DrengineError as error:
                assert error.kind is STORE_FULL
                failures += 1
            check(store, SEED, durable)
            filler.unlink()
        assert failures, "there was always room"
        store.compact()
        writer.close()
        assert check(store, SEED, durable) == durable


@pytest.mark.fault(6)
@pytest.mark.parametrize("leave_bytes", [0, 4096, 16384])
def test_a_full_disk_keeps_nobody_from_recovering(small_disk: Path, leave_bytes: int) -> None:
    with Store.create(small_disk / "store", options=OPTIONS) as store:
        store.ensure_source(SOURCE)
        writer = store.writer(SOURCE, generation=1)
        for _ in range(60):
            append_next(writer, SEED)
        durable = writer.commit(generation=1).sequence
        writer.close()
    fill(small_disk / "filler", leave_bytes)
    with Store.open(small_disk / "store", options=OPTIONS, read_only=True) as store:
        assert check(store, SEED, durable) == durable


def test_the_filler_fills(small_disk: Path) -> None:
    fill(small_disk / "filler", 0)
    with pytest.raises(OSError) as caught, (small_disk / "other").open("wb") as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
            file.flush()
    assert caught.value.errno == errno.ENOSPC
