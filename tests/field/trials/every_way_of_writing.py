"""All that Linux offers for changing a disk, on disks that are tracked in the kernel."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from pathlib import Path

from tests.agent.capture.ebpf.operations import Place, operate
from tests.agent.capture.ebpf.rig import BLKDISCARD, BLKZEROOUT, BLOCK, MIB, block_ioctl, write
from tests.field.ground import Ground, Pair, read_live
from tests.field.trial import Skipped, trial

SIZE = 64 * MIB
ROUNDS, OPERATIONS = 4, 30
PAGED_BYTES = 24 * MIB
PAGEOUT = 21  # MADV_PAGEOUT; Python's mmap does not name it
ZRAM = Path("/sys/class/zram-control")
SWAP_PRIORITY = "0"


@trial(seconds_max=180)
def every_way_of_writing_arrives(ground: Ground) -> None:
    """Plain, direct, mapped, asynchronous writes, discards, zeroing, fallocate, fstrim, on a raw and a mounted disk."""
    ground.needs_kernel()
    ground.needs("mkfs.ext4", "fio")
    raw, made = ground.disk("raw", SIZE, filled=MIB), ground.disk("made", SIZE)
    ground.run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", made)
    with ground.mounted(made, "mount", "-o", "discard") as mount:
        file = mount / "file"
        file.write_bytes(ground.rng.randbytes(16 * MIB))
        pair = Pair(ground, {"raw": raw, "made": made}, tracker="ebpf").start()
        done: set[str] = set()
        for _ in range(ground.times(ROUNDS)):
            for _ in range(OPERATIONS):
                done.add(operate(Place(raw, SIZE, 512, None), ground.rng))
                done.add(operate(Place(file, 16 * MIB, 512, mount), ground.rng))
            ground.run("fstrim", mount)
            os.sync()
            pair.until_equal()
        assert pair.status()["rescans"] == {}, pair.status()["rescans"]
    ground.measured["operations"] = 2 * OPERATIONS * ground.times(ROUNDS)
    ground.measured["ways"] = len([each for each in done if "refused" not in each])


@trial(seconds_max=120)
def swap_on_a_tracked_disk_arrives(ground: Ground) -> None:
    """Memory is swapped out to a loop device and to zram; what they hold afterwards is what the replica holds."""
    ground.needs_kernel()
    ground.needs("mkswap", "swapon", "swapoff")
    disks = {"loop": ground.disk("loop", SIZE), "zram": _zram(ground)}
    pair = Pair(ground, disks, tracker="ebpf").start()
    pair.until_equal()
    written = 0
    for disk in disks.values():
        ground.run("mkswap", disk)
        ground.run("swapon", "--priority", SWAP_PRIORITY, disk)
        try:
            written += _page_out(ground)
        finally:
            ground.run("swapoff", disk)
        block_ioctl(disk, BLKDISCARD, 40 * MIB, 4 * MIB)
        with contextlib.suppress(OSError):
            block_ioctl(disk, BLKZEROOUT, 50 * MIB, MIB)
    ground.until("but for freed slots of zram, the replica equals the disks", lambda: _is_equal_but_freed(pair))
    for offset in range(0, SIZE, MIB):
        write(disks["zram"], offset, MIB, fill=1 + ground.rng.randrange(255))
    pair.until_equal()
    assert pair.status()["rescans"] == {}, pair.status()["rescans"]
    ground.measured["MiB swapped out"] = written // MIB


def _is_equal_but_freed(pair: Pair) -> bool:
    """Whether the newest point is what the disks hold; zram empties a slot that swap has freed without any I/O."""
    if pair.content("loop") != read_live(pair.volumes["loop"]):
        return False
    shown, live = pair.content("zram"), read_live(pair.volumes["zram"])
    blocks = ((shown[at : at + BLOCK], live[at : at + BLOCK]) for at in range(0, SIZE, BLOCK))
    return all(one == two or not any(two) for one, two in blocks)


def _page_out(ground: Ground) -> int:
    """Memory of our own, pushed out at once and read back."""
    content = ground.rng.randbytes(PAGED_BYTES)
    with contextlib.closing(mmap.mmap(-1, PAGED_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)) as memory:
        memory[:] = content
        before = _swapped_out()
        libc = ctypes.CDLL(None, use_errno=True)
        pointer = ctypes.c_char.from_buffer(memory)
        failed = libc.madvise(ctypes.c_void_p(ctypes.addressof(pointer)), ctypes.c_size_t(PAGED_BYTES), PAGEOUT)
        del pointer
        if failed:
            raise Skipped(f"this kernel can't page out on demand: {os.strerror(ctypes.get_errno())}")
        written = _swapped_out() - before
        assert memory[:] == content, "the memory came back changed"
    assert written > PAGED_BYTES // 2, f"only {written} bytes were swapped out"
    return written


def _swapped_out() -> int:
    facts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(facts["pswpout"]) * os.sysconf("SC_PAGE_SIZE")


def _zram(ground: Ground) -> Path:
    """A compressed disk in memory, of our own."""
    if not ZRAM.exists():
        raise Skipped("there is no zram here")
    number = (ZRAM / "hot_add").read_text().strip()
    ground.at_end((ZRAM / "hot_remove").write_text, number)
    Path(f"/sys/block/zram{number}/disksize").write_text(str(SIZE))
    return Path(f"/dev/zram{number}")
