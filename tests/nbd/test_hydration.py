"""A disk that becomes local while it is used always reads as the remote one does."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drengine.nbd.client import NbdClient
from drengine.nbd.hydration import BLOCK_BYTES, CopyError, Hydration
from tests.linux.loops import loop_device

SIZE_BYTES = 6 * BLOCK_BYTES + 12_345


class Remote:
    """A remote disk in memory; `failing` makes its next answers errors."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)
        self.size_bytes = len(content)
        self.block_bytes_min = 1
        self.failing = 0
        self.reads = 0

    def _maybe_fail(self) -> None:
        if self.failing:
            self.failing -= 1
            raise OSError("the link is down")

    def read(self, offset: int, length: int) -> bytearray:
        self._maybe_fail()
        self.reads += 1
        return self.content[offset : offset + length]

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self.content[offset : offset + len(data)] = data  # the answer may be lost although it was written
        self._maybe_fail()

    def zero(self, offset: int, length: int) -> None:
        self.write(offset, bytes(length))

    trim = zero

    def flush(self) -> None:
        self._maybe_fail()

    def close(self) -> None: ...


@contextlib.contextmanager
def hydrating(remote: Remote, copy: Path) -> Iterator[Hydration]:
    disk = Hydration(lambda: remote, copy)  # type: ignore[arg-type, return-value]
    try:
        yield disk
    finally:
        disk.close()


ranges = st.tuples(st.integers(0, SIZE_BYTES - 1), st.integers(1, 3 * BLOCK_BYTES)).map(
    lambda pair: (pair[0], min(pair[1], SIZE_BYTES - pair[0]))
)
steps = st.lists(st.tuples(st.sampled_from(["read", "write", "zero", "discard", "fill", "fail"]), ranges), max_size=25)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(steps=steps, seed=st.integers(0, 2**32))
def test_every_read_shows_the_remote_disk_whatever_happened_before(
    steps: list[tuple[str, tuple[int, int]]], seed: int, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    remote = Remote(rng.randbytes(SIZE_BYTES // 2) + bytes(SIZE_BYTES - SIZE_BYTES // 2))
    with hydrating(remote, tmp_path / "copy") as disk:
        for action, (offset, length) in steps:
            with contextlib.suppress(OSError):
                match action:
                    case "read":
                        at_once = disk.read_at_once(offset, length)
                        assert at_once is None or at_once == remote.content[offset : offset + length]
                        assert disk.read(offset, length) == remote.content[offset : offset + length]
                    case "write":
                        disk.write(offset, rng.randbytes(length))
                    case "zero" | "discard":
                        disk.zero(offset, length, discard=action == "discard")
                    case "fill":
                        disk.fill(threading.Event())
                    case "fail":
                        remote.failing = 1
        remote.failing = 0
        disk.fill(threading.Event())
        assert disk.complete
        assert disk.hydrated_bytes == SIZE_BYTES
        reads = remote.reads
        assert disk.read(0, SIZE_BYTES) == remote.content
        assert remote.reads == reads, "a complete copy still asked the remote disk"
    assert (tmp_path / "copy").read_bytes() == remote.content


def test_writers_and_the_background_never_mix_up_old_and_new(tmp_path: Path) -> None:
    remote = Remote(b"o" * SIZE_BYTES)
    with hydrating(remote, tmp_path / "copy") as disk:
        stopping = threading.Event()
        filling = threading.Thread(target=disk.fill, args=(stopping,))

        def scribble(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(200):
                disk.write(rng.randrange(SIZE_BYTES - 9000), rng.randbytes(rng.randrange(1, 9000)))

        writers = [threading.Thread(target=scribble, args=(seed,)) for seed in range(4)]
        for thread in (filling, *writers):
            thread.start()
        for thread in (filling, *writers):
            thread.join()
        assert disk.read(0, SIZE_BYTES) == remote.content


def test_a_small_write_to_a_local_block_costs_no_remote_read(tmp_path: Path) -> None:
    remote = Remote(b"x" * SIZE_BYTES)
    with hydrating(remote, tmp_path / "copy") as disk:
        disk.fill(threading.Event())
        reads = remote.reads
        disk.write(100, b"abc")
        assert disk.read(98, 8) == b"xxabcxxx"
        assert remote.reads == reads


def test_without_a_copy_it_only_passes_on() -> None:
    remote = Remote(b"x" * SIZE_BYTES)
    disk = Hydration(lambda: remote, None)  # type: ignore[arg-type, return-value]
    disk.write(5, b"abc")
    disk.zero(8, 2, discard=False)
    assert disk.read(4, 7) == b"xabc\0\0x" == remote.content[4:11]
    disk.close()


def test_zeros_take_no_space(tmp_path: Path) -> None:
    with hydrating(Remote(bytes(SIZE_BYTES)), tmp_path / "copy") as disk:
        disk.fill(threading.Event())
    assert (tmp_path / "copy").stat().st_blocks * 512 < BLOCK_BYTES


@pytest.mark.parametrize("relied_upon", [False, True])
def test_a_copy_that_can_not_be_written_is_given_up_and_the_remote_disk_serves_alone(
    tmp_path: Path, relied_upon: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Remote(b"x" * SIZE_BYTES)
    with hydrating(remote, tmp_path / "copy") as disk:
        assert not disk.rely()
        disk.fill(threading.Event())
        assert not relied_upon or disk.rely()
        monkeypatch.setattr(os, "pwrite", full)
        if relied_upon:
            with pytest.raises(CopyError, match="No space"):
                disk.write(5, b"abc")
            with pytest.raises(CopyError, match="No space"):
                disk.zero(5, 3, discard=False)
            disk.relinquish()
        disk.write(5, b"abc")
        monkeypatch.undo()
        assert "No space" in disk.given_up
        assert not disk.complete
        assert not disk.rely()
        assert disk.read_at_once(4, 5) is None
        assert disk.read(4, 5) == b"xabcx"
        disk.fill(threading.Event())
        assert bool((tmp_path / "copy").stat().st_size) == relied_upon


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_copy_that_finds_no_room_while_it_fills_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Remote(b"x" * SIZE_BYTES)
    with hydrating(remote, tmp_path / "copy") as disk:
        monkeypatch.setattr(os, "pwrite", full)
        assert disk.read(4, 5) == b"xxxxx"
        disk.fill(threading.Event())
        assert "No space" in disk.given_up


def test_a_device_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="smaller"):
        Hydration(lambda: Remote(b"x" * SIZE_BYTES), Path("/dev/null"))  # type: ignore[arg-type, return-value]


def test_a_copy_on_a_device_is_named_by_its_link_and_is_nobody_elses(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(SIZE_BYTES)
    with loop_device(tmp_path / "image", 1 << 20) as device:
        (tmp_path / "by-id").symlink_to(device)
        with hydrating(Remote(content), tmp_path / "by-id") as disk:
            disk.fill(threading.Event())
            with pytest.raises(OSError, match="busy"), hydrating(Remote(content), device):
                pass
        assert device.read_bytes()[:SIZE_BYTES] == content


def test_a_link_to_a_file_is_no_place_for_a_copy(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_bytes(b"theirs")
    (tmp_path / "link").symlink_to("theirs")
    with pytest.raises(OSError), hydrating(Remote(b"x"), tmp_path / "link"):
        pass
    assert (tmp_path / "theirs").read_bytes() == b"theirs"


def test_it_is_a_client_that_hydration_needs() -> None:
    needed = {"read", "write", "zero", "trim", "flush", "close"}
    assert needed <= set(dir(NbdClient))
