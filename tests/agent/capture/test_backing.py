"""Volumes: known by what they are, byte-exact, and never served while somebody else may write to them."""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drengine.model.errors import DrengineError
from drengine_agent.capture import backing
from drengine_agent.capture.backing import Volume

SIZE = 3 * 4096 + 513


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "disk"
    made.write_bytes(os.urandom(SIZE))
    return made


def kind_of(call) -> str:
    with pytest.raises(DrengineError) as caught:
        call()
    return caught.value.kind.id


@pytest.mark.fault(24)
@pytest.mark.fault(28)
@pytest.mark.parametrize("fallocate", [True, False])
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("wzht"), st.integers(0, SIZE - 1), st.integers(1, 6000)), max_size=10),
)
def test_writes_zeros_and_holes_are_byte_exact_to_an_odd_tail(tmp_path_factory, fallocate: bool, steps) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if not fallocate:

            def refuse(*arguments: int) -> None:
                raise OSError(95, "not supported here")

            patch.setattr(backing, "_fallocate", refuse)
        path = tmp_path_factory.mktemp("volume") / "disk"
        oracle = bytearray(b"\xaa" * SIZE)
        path.write_bytes(oracle)
        volume = Volume.open(1, "disk", path, writable=True, direct=True)
        for kind, offset, wanted in steps:
            length = min(wanted, SIZE - offset)
            oracle[offset : offset + length] = b"w" * length if kind in "wt" else bytes(length)
            if kind == "w":
                volume.write(offset, b"w" * length)
            elif kind == "t":
                volume.write_all(offset, [b"w" * (length // 2), b"w" * (length - length // 2)], length)
            else:
                volume.zero(offset, length, hole=kind == "h")
        assert volume.read(0, SIZE) == oracle
        page = mmap.mmap(-1, 16384)
        volume.read_into(0, memoryview(page)[:12288])
        assert page[:12288] == oracle[:12288]
        pieces = volume.data_extents(0, SIZE)
        assert sum(length for _, length, _ in pieces) == SIZE
        assert all(is_data or not any(oracle[start : start + size]) for start, size, is_data in pieces)
        assert path.stat().st_size == SIZE
        volume.close()


@pytest.mark.fault(26)
def test_reading_past_a_shrunk_end_is_an_error_and_never_zeros(path: Path) -> None:
    volume = Volume.open(1, "disk", path)
    os.truncate(path, 5000)
    with pytest.raises(OSError, match="ends at byte 5000"):
        volume.read(0, SIZE)
    with pytest.raises(OSError, match="ends at byte 5000"):
        volume.read_into(0, bytearray(SIZE))
    assert volume.check() == 5000


@pytest.mark.fault(27)
def test_a_new_file_with_the_same_inode_number_is_still_another_one(path: Path) -> None:
    identity = Volume.open(1, "disk", path).identity
    for _ in range(50):
        path.unlink()
        path.write_bytes(bytes(SIZE))
        assert kind_of(lambda: Volume.open(1, "disk", path, identity=identity)) == "volume-replaced"


def test_what_cannot_be_a_volume_is_refused_in_one_line(path: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert kind_of(lambda: Volume.open(1, "disk", tmp_path)) == "volume-unsupported"
    assert kind_of(lambda: Volume.open(1, "disk", tmp_path / "empty")) == "volume-unsupported"
    assert kind_of(lambda: Volume.open(1, "disk", "/dev/null")) == "volume-unsupported"
    assert kind_of(lambda: Volume.open(1, "disk", tmp_path / "none")) == "volume-missing"


def test_two_taps_cannot_have_the_same_file(path: Path) -> None:
    first = Volume.open(1, "disk", path, writable=True)
    assert kind_of(lambda: Volume.open(1, "disk", path, writable=True)) == "volume-in-use"
    Volume.open(1, "disk", path).close()
    first.close()
    Volume.open(1, "disk", path, writable=True).close()


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    image = tmp_path / "image"
    image.write_bytes(bytes(8 << 20))
    made = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device can be made here: {made.stderr.strip()}")
    device = Path(made.stdout.strip())
    yield image, device
    subprocess.run(["losetup", "--detach", device], check=True)


def test_a_file_behind_a_loop_device_is_in_use(loop: tuple[Path, Path]) -> None:
    image, _ = loop
    assert kind_of(lambda: Volume.open(1, "disk", image, writable=True)) == "volume-in-use"
    Volume.open(1, "disk", image).close()


def test_a_device_is_named_by_its_link_as_well(loop: tuple[Path, Path], tmp_path: Path) -> None:
    _, device = loop
    (tmp_path / "by-id").symlink_to(device)
    by_name, by_link = Volume.open(1, "disk", device), Volume.open(1, "disk", tmp_path / "by-id", writable=True)
    assert (by_link.identity, by_link.size_bytes) == (by_name.identity, 8 << 20)
    by_link.close()
    by_name.close()


@pytest.mark.fault(27)
def test_a_block_device_is_served_unless_it_is_mounted(loop: tuple[Path, Path], tmp_path: Path) -> None:
    image, device = loop
    volume = Volume.open(1, "disk", device, writable=True)
    assert volume.size_bytes == 8 << 20
    assert volume.identity == f"block:loop={image}"
    before = volume.stamp()
    volume.write(4096, b"x" * 5000)
    volume.zero(5000, 1000)
    volume.sync()
    assert volume.stamp() != before
    assert volume.read(4096, 5000) == b"x" * 904 + bytes(1000) + b"x" * 3096
    assert volume.check() == 8 << 20
    volume.close()
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    mount = tmp_path / "mount"
    mount.mkdir()
    if subprocess.run(["mount", device, mount], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        assert kind_of(lambda: Volume.open(1, "disk", device, writable=True)) == "volume-in-use"
        Volume.open(1, "disk", device).close()
    finally:
        subprocess.run(["umount", mount], check=True)


def test_a_flush_leaves_a_devices_stamp_as_it_is_and_a_write_does_not(loop: tuple[Path, Path]) -> None:
    _, device = loop
    volume = Volume.open(1, "data", device, writable=True)
    try:
        volume.write(0, b"x" * 4096)
        volume.sync()
        before = volume.stamp()
        for _ in range(3):
            volume.sync()
        assert volume.stamp() == before
        volume.write(0, b"y" * 512)
        volume.sync()
        assert volume.stamp() != before
    finally:
        volume.close()
