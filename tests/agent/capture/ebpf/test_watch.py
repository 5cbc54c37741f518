"""The watch on loop devices of the running kernel: what it sees, keeps, and refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from drengine.model.errors import DrengineError
from drengine_agent.capture.ebpf.errors import EBPF_REFUSED
from drengine_agent.capture.ebpf.watch import Watch
from drengine_agent.capture.tracker import Range
from tests.agent.capture.ebpf.rig import (
    BLKDISCARD,
    BLKZEROOUT,
    BLOCK,
    MIB,
    block_ioctl,
    fresh_source,
    loop_device,
    needs_kernel,
    opened,
    taken,
    watched,
    watching,
    write,
)

pytestmark = needs_kernel


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with loop_device(tmp_path / "disk.img", 64 * MIB) as device:
        yield device


def test_a_fresh_watch_says_that_nobody_watched_before_and_is_quiet(disk: Path) -> None:
    with watching(watched(disk)) as watch:
        assert watch.doubt == "untracked"
        assert watch.is_quiet()
        assert taken(watch) == []


def test_writes_discards_and_zeroes_are_seen_and_reads_are_not(disk: Path) -> None:
    with watching(watched(disk)) as watch:
        write(disk, 8192, BLOCK)
        assert not watch.is_quiet()
        assert taken(watch) == [(1, 8192, BLOCK)]
        block_ioctl(disk, BLKDISCARD, MIB, 2 * MIB)
        assert taken(watch) == [(1, MIB, 2 * MIB)]
        block_ioctl(disk, BLKZEROOUT, 4 * MIB, MIB)
        assert taken(watch) == [(1, 4 * MIB, MIB)]
        with opened(disk) as fd:
            before = watch.counter()
            import mmap
            import os

            buffer = mmap.mmap(-1, MIB)
            os.preadv(fd, [buffer], 0)
            os.fsync(fd)
        assert watch.is_quiet()
        assert watch.counter() == before


def test_a_write_shorter_than_a_block_marks_the_block_that_holds_it(disk: Path) -> None:
    with watching(watched(disk)) as watch:
        write(disk, 3 * BLOCK + 512, 512)
        assert taken(watch) == [(1, 3 * BLOCK, BLOCK)]


def test_a_range_over_the_whole_disk_is_one_range(disk: Path) -> None:
    with watching(watched(disk)) as watch:
        block_ioctl(disk, BLKDISCARD, 0, 64 * MIB)
        assert taken(watch) == [(1, 0, 64 * MIB)]


def test_a_pending_answer_survives_the_watcher_and_writes_meanwhile_are_kept(disk: Path) -> None:
    source = fresh_source()
    with watching(watched(disk), source) as watch:
        epoch = watch.epoch
        write(disk, 0, BLOCK)
        watch.flip()
        watch.close()
        write(disk, BLOCK * 10, BLOCK)
        again = Watch.attach(source, watched(disk))
        try:
            assert (again.doubt, again.epoch, again.answer) == ("none", epoch, 1)
            assert again.pending() == [Range(1, 0, BLOCK)]
            again.clear_pending()
            assert taken(again) == [(1, BLOCK * 10, BLOCK)]
        finally:
            again.close()


def test_what_could_not_be_read_is_handed_out_again_under_a_new_number(disk: Path) -> None:
    with watching(watched(disk)) as watch:
        write(disk, 0, 4 * BLOCK)
        watch.flip()
        watch.clear_pending(keep=[Range(1, BLOCK, 100)])
        assert watch.pending() == [Range(1, BLOCK, BLOCK)]
        assert watch.answer == 2
        watch.add_pending([Range(1, 5 * MIB, 3 * BLOCK)])
        assert watch.pending() == [Range(1, BLOCK, BLOCK), Range(1, 5 * MIB, 3 * BLOCK)]
        assert watch.answer == 3
        watch.clear_pending()
        assert watch.pending() == []
        assert taken(watch) == []


def test_a_second_watcher_of_the_same_source_is_refused(disk: Path) -> None:
    source = fresh_source()
    with watching(watched(disk), source):
        with pytest.raises(DrengineError) as refused:
            Watch.attach(source, watched(disk))
        assert refused.value.kind is EBPF_REFUSED
        with pytest.raises(DrengineError):
            Watch.detach(source)
        facts = Watch.inspect(source)
        assert facts is not None
        assert facts.owned
    assert Watch.inspect(source) is None
