"""A completion that no program saw is found by comparing with the kernel's own statistics, and its block handed out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

from drengine_agent.capture.ebpf import program
from drengine_agent.capture.ebpf import watch as watch_module
from drengine_agent.capture.ebpf.instructions import Assembler, If, Width
from drengine_agent.capture.ebpf.offsets import Offsets
from drengine_agent.capture.ebpf.program import Maps, Regions
from drengine_agent.capture.ebpf.watch import Watch
from tests.agent.capture.ebpf.rig import (
    BLOCK,
    KIB,
    MIB,
    blocks_of,
    fresh_source,
    loop_device,
    needs_kernel,
    taken,
    watched,
    watching,
    write,
)

pytestmark = needs_kernel
BLIND = 1000
"""The block whose completions no program sees."""


@contextmanager
def blind() -> Iterator[None]:
    """Completion programs that leave at once for one block, as if the kernel had left out their run."""
    plain_event, plain_begin = program._on_request, program._begin_request

    def begin(code: Assembler, regions: Regions, offsets: Offsets, maps: Maps) -> None:
        code.load(Width.U64, 1, 6, offsets.request_sector)
        code.jump_if_value(If.EQUAL, 1, BLIND * 8, "out")
        plain_begin(code, regions, offsets, maps)

    def on_request(regions: Regions, offsets: Offsets, maps: Maps, copy: int) -> bytes:
        with mock.patch.object(program, "_begin_request", begin):
            return plain_event(regions, offsets, maps, copy)

    with mock.patch.object(program, "_on_request", on_request):
        yield


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with loop_device(tmp_path / "disk.img", 64 * MIB) as device:
        yield device


@pytest.mark.fault(20)
def test_a_completion_that_no_program_saw_means_no_cut_until_its_block_was_handed_out(disk: Path) -> None:
    with blind(), watching(watched(disk)) as watch:
        write(disk, BLOCK, BLOCK)
        assert taken(watch) == [(1, BLOCK, BLOCK)]
        assert watch.is_quiet()
        write(disk, BLIND * BLOCK, BLOCK)
        assert not watch.is_quiet()
        assert watch.active_blocks() > 0
        watch.flip()
        assert (1, BLIND) in blocks_of(watch.pending())
        assert watch.statistics().healed == 1
        watch.clear_pending()
        assert watch.is_quiet()
        assert taken(watch) == []
        assert watch.check() == "none"


@pytest.mark.fault(20)
def test_a_completion_left_out_while_nobody_watched_is_found_by_the_next(disk: Path) -> None:
    source = fresh_source()
    with blind(), watching(watched(disk), source) as watch:
        watch.close()
        write(disk, BLIND * BLOCK, BLOCK)
        again = Watch.attach(source, watched(disk))
        try:
            assert again.doubt == "none"
            assert not again.is_quiet()
            again.flip()
            assert (1, BLIND) in blocks_of(again.pending())
        finally:
            again.close()


def test_a_ledger_is_forgotten_once_all_that_stands_in_it_was_seen_to_complete(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "LEDGER_SECONDS", 0.0)
    with blind(), watching(watched(disk)) as watch:
        write(disk, 40 * MIB, BLOCK)
        for _ in range(8):
            taken(watch)
            assert watch.is_quiet()
        write(disk, BLIND * BLOCK, BLOCK)
        found = taken(watch)
        assert found == [(1, BLIND * BLOCK // (64 * KIB) * 64 * KIB, 64 * KIB)]


def test_without_the_audit_the_block_would_be_lost_and_the_disk_called_quiet(disk: Path) -> None:
    """The tests above could fail."""
    with blind(), watching(watched(disk)) as watch:
        assert watch._audit is not None
        watch._audit._regions = []
        write(disk, BLIND * BLOCK, BLOCK)
        assert watch.is_quiet()
        assert taken(watch) == []
