"""Looking at a watch: what the kernel side has counted, and pinned state seen without taking it over."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drengine_agent.capture.ebpf import layout as at
from drengine_agent.capture.ebpf import program, syscalls
from drengine_agent.capture.ebpf.bits import Half, load_word
from drengine_agent.capture.ebpf.control import boot_hash, described, sum_of, watched_volume
from drengine_agent.capture.ebpf.pins import is_owned, map_shared

CONTROL_PIN, BITS_PIN, INFLIGHT_PIN = "control", "bits", "inflight"


@dataclass(frozen=True, slots=True)
class WatchStatistics:
    """What the kernel side has counted since it was attached.

    Attributes:
        counted: the completion counter; about COPIES for each change of a watched disk.
        passed_out, passed_in: pass-through commands to watched disks, with data to the device or not.
        run_count, run_ns: runs of all programs, for every disk of the host; zero unless kernel.bpf_stats_enabled.
        runs_missed: runs that the kernel says it left out; another copy did their work.
        healed: times that completions had been left out by all copies, and what was issued was handed out again.
        unrecorded, unmatched: bios whose range was not remembered when they were queued.
        faults: bits that a program could not set.
    """

    counted: int
    passed_out: int
    passed_in: int
    run_count: int
    run_ns: int
    runs_missed: int
    unrecorded: int
    unmatched: int
    faults: int
    healed: int


@dataclass(frozen=True, slots=True)
class WatchFacts:
    """What `inspect` sees without taking over.

    Attributes:
        epoch, answer, pending: see Watch.
        attached_ns: wall clock when tracking began.
        owned: a process has this watch open.
        whole: the state proves itself (this boot, this version of the programs).
        volumes: as attached: number, size, device name and number, diskseq and so on.
        active_blocks, pending_blocks: dirty blocks of 4 KiB.
        memory_bytes: kernel memory of the bitmaps.
    """

    epoch: bytes
    answer: int
    pending: bool
    attached_ns: int
    owned: bool
    whole: bool
    volumes: tuple[dict[str, Any], ...]
    active_blocks: int
    pending_blocks: int
    memory_bytes: int
    statistics: WatchStatistics


def inspect(folder: Path) -> WatchFacts | None:
    """Look at a pinned state; None if there is none that can be read."""
    try:
        with contextlib.ExitStack() as stack:
            control_fd = syscalls.open_pin(folder / CONTROL_PIN)
            stack.callback(os.close, control_fd)
            view = stack.enter_context(contextlib.closing(map_shared(control_fd, at.CONTROL_BYTES, writable=False)))
            if load_word(view, at.AT_MAGIC) != at.MAGIC or load_word(view, at.AT_VERSION) != at.VERSION:
                return None
            return _facts_of(folder, view, stack)
    except (OSError, ValueError, KeyError):
        return None


def statistics_of(view: mmap.mmap, regions: int, infos: Sequence[syscalls.ProgramInfo]) -> WatchStatistics:
    """What is counted in a control value, and by the kernel for its programs."""
    return WatchStatistics(
        load_word(view, at.AT_COUNTER),
        sum_of(view, regions, at.REGION_PASSED_OUT),
        sum_of(view, regions, at.REGION_PASSED_IN),
        sum(info.run_count for info in infos),
        sum(info.run_ns for info in infos),
        sum(info.missed for info in infos),
        load_word(view, at.AT_UNRECORDED),
        load_word(view, at.AT_UNMATCHED),
        load_word(view, at.AT_FAULTS),
        load_word(view, at.AT_HEALED),
    )


def _facts_of(folder: Path, view: mmap.mmap, stack: contextlib.ExitStack) -> WatchFacts:
    volumes = described(view)
    layout = at.plan([watched_volume(each) for each in volumes])
    bits_fd = syscalls.open_pin(folder / BITS_PIN)
    stack.callback(os.close, bits_fd)
    bits = stack.enter_context(contextlib.closing(map_shared(bits_fd, layout.words * 8, writable=False)))
    active = 0 if load_word(view, at.AT_ACTIVE) == 0 else 1
    infos = []
    for path in folder.glob("program-*"):
        fd = syscalls.open_pin(path)
        stack.callback(os.close, fd)
        infos.append(syscalls.program_info(fd))
    pending = load_word(view, at.AT_PHASE) == at.PHASE_PENDING
    return WatchFacts(
        bytes(view[at.AT_EPOCH : at.AT_EPOCH + 16]),
        load_word(view, at.AT_ANSWER),
        pending,
        load_word(view, at.AT_STARTED_NS),
        is_owned(folder),
        view[at.AT_BOOT : at.AT_BOOT + 16] == boot_hash()
        and view[at.AT_FINGERPRINT : at.AT_FINGERPRINT + 16] == program.fingerprint(),
        tuple(volumes),
        Half(bits, layout, active).count_blocks(),
        Half(bits, layout, 1 - active).count_blocks() if pending else 0,
        layout.words * 8,
        statistics_of(view, len(layout.regions), infos),
    )
