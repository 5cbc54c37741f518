"""The pinned kernel state of one consistency group: attach or adopt it, flip it, read it, let go of it.

Invariants, attacked by tests/agent/capture/ebpf:

1. A write whose completion anyone has seen has its blocks' bits set in the active half, or had them set in a half
   that was handed out as pending since. No user-space store ever touches the half that programs may write to.
2. `flip` returns only after every program run that may have read the old active half has ended.
3. Every stage is a word in the pinned control value. A process killed at any moment leaves a state that the next one
   takes up: a flip begun is finished, a pending answer is handed out again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from drengine.model.errors import DrengineError
from drengine_agent.capture.ebpf import layout as at
from drengine_agent.capture.ebpf import program, syscalls
from drengine_agent.capture.ebpf.audit import Audit, Verdict
from drengine_agent.capture.ebpf.bits import Half, load_word, store_bytes, store_word
from drengine_agent.capture.ebpf.btf import KernelTypes, UnknownTypeError
from drengine_agent.capture.ebpf.control import (
    boot_hash,
    described,
    described_now,
    geometry_doubt,
    sum_of,
    write_control,
)
from drengine_agent.capture.ebpf.device import in_flight, refresh
from drengine_agent.capture.ebpf.errors import EBPF_REFUSED, EBPF_UNAVAILABLE
from drengine_agent.capture.ebpf.facts import (
    BITS_PIN,
    CONTROL_PIN,
    INFLIGHT_PIN,
    WatchFacts,
    WatchStatistics,
    inspect,
    statistics_of,
)
from drengine_agent.capture.ebpf.layout import Layout, WatchedVolume
from drengine_agent.capture.ebpf.offsets import Offsets
from drengine_agent.capture.ebpf.pins import PIN_ROOT, folder_of, lock, map_shared, mount_bpffs, remove_pins
from drengine_agent.capture.tracker import Range

__all__ = ["PIN_ROOT", "Watch", "WatchFacts", "WatchStatistics"]

SETTLE_SECONDS: Final = 1.0
LEDGER_SECONDS: Final = 60.0
"""How long a ledger is written before the next one begins, at least."""


class Watch:
    """The tracking of one source's volumes. One thread at a time changes it; any thread may read.

    Attributes:
        doubt: `none` if running state was adopted whole; else why tracking began anew, a code of states.REASONS.
        epoch: 16 random bytes of this tracking state.
    """

    def __init__(self, folder: Path, lock_fd: int, volumes: Sequence[WatchedVolume], layout: Layout) -> None:
        """Use `attach`."""
        self._folder = folder
        self._lock_fd = lock_fd
        self._volumes = tuple(volumes)
        self._layout = layout
        self._fds: dict[str, int] = {}
        self._view: mmap.mmap | None = None
        self._bits_view: mmap.mmap | None = None
        self._audit: Audit | None = None
        self._short = False
        self._rotate_at = 0.0
        self._passed = 0
        self.doubt = "none"

    # -- beginning and end

    @staticmethod
    def attach(source: str, volumes: Sequence[WatchedVolume], *, root: Path = PIN_ROOT) -> Watch:
        """Take up the pinned tracking of these volumes if it proves itself, else begin anew and say why in `doubt`.

        Raises:
            DrengineError: EBPF_UNAVAILABLE (kernel, privileges), EBPF_REFUSED (a device that can't be tracked,
                or another process watches for this source).
        """
        for each in volumes:
            _check_device(each)
        try:
            layout = at.plan(volumes)
        except ValueError as error:
            raise DrengineError(EBPF_REFUSED, str(error)) from error
        mount_bpffs(root)
        folder = folder_of(root, source)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock_fd = lock(folder, source)
        except OSError as error:
            raise _unavailable(error) from error
        watch = Watch(folder, lock_fd, volumes, layout)
        try:
            watch.doubt = watch._adopt()
            if watch.doubt != "none":
                watch._let_go_of_pins()
                remove_pins(folder)
                watch._begin()
            watch._start_audit()
            watch._finish_flip()
        except OSError as error:
            watch._abandon()
            raise _unavailable(error) from error
        except UnknownTypeError as error:
            watch._abandon()
            raise DrengineError(EBPF_UNAVAILABLE, str(error)) from error
        except BaseException:
            watch.close()
            raise
        return watch

    def close(self) -> None:
        """Let go: tracking goes on inside the kernel, for the next `attach` to adopt. May be called twice."""
        self._let_go_of_pins()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    @staticmethod
    def detach(source: str, *, root: Path = PIN_ROOT) -> bool:
        """Stop tracking and give the memory back; True if there was something.

        Raises:
            DrengineError: EBPF_REFUSED, a process is watching.
        """
        folder = folder_of(root, source)
        if not folder.is_dir():
            return False
        lock_fd = lock(folder, source)
        try:
            remove_pins(folder)
            folder.rmdir()
            with contextlib.suppress(OSError):
                root.rmdir()  # the last one takes the common folder along
        finally:
            os.close(lock_fd)
        return True

    @staticmethod
    def inspect(source: str, *, root: Path = PIN_ROOT) -> WatchFacts | None:
        """Look at pinned state without taking it over; None if there is none that can be read."""
        return inspect(folder_of(root, source))

    # -- the watch

    @property
    def epoch(self) -> bytes:
        """16 random bytes that name this tracking state."""
        return bytes(self._control[at.AT_EPOCH : at.AT_EPOCH + 16])

    @property
    def answer(self) -> int:
        """Number of the newest pending answer; rises with each `flip` and `add_pending`, kept over restarts."""
        return load_word(self._control, at.AT_ANSWER)

    @property
    def cleared(self) -> int:
        """Number of the newest answer that was durable at the target, kept over restarts; older ones are forgotten."""
        return load_word(self._control, at.AT_CLEARED)

    @property
    def has_pending(self) -> bool:
        """An answer was handed out and not cleared."""
        return load_word(self._control, at.AT_PHASE) == at.PHASE_PENDING

    def counter(self) -> int:
        """Grows with every completed change of the group, after its bits were set and before anyone is told."""
        return load_word(self._control, at.AT_COUNTER)

    def is_quiet(self) -> bool:
        """Nothing has completed since the last flip, nothing did while this was found out, and none was left out."""
        before = self.counter()
        syscalls.memory_barrier()
        if not self._active.is_empty():
            return False
        verdict = self._compare()
        syscalls.memory_barrier()
        return verdict is Verdict.EXACT and self._active.is_empty() and self.counter() == before

    def flip(self) -> None:
        """Hand out what was marked as the next pending answer; programs mark in the other half from now on.

        Takes a grace period of the kernel, about 10 ms; no writer waits for it.

        Raises:
            ValueError: an answer is pending already.
        """
        if load_word(self._control, at.AT_PHASE) != at.PHASE_NONE:
            raise ValueError("the pending answer has not been cleared")
        target = self._layout.half_words - load_word(self._control, at.AT_ACTIVE)
        store_word(self._control, at.AT_FLIP_TO, target)
        syscalls.memory_barrier()
        store_word(self._control, at.AT_PHASE, at.PHASE_FLIPPING)
        now = time.monotonic()
        rotates = now >= self._rotate_at and self._audit is not None and self._audit.rotate()
        self._finish_flip()
        if rotates and self._audit is not None:
            self._audit.rotated()
            self._rotate_at = now + LEDGER_SECONDS

    def pending(self) -> list[Range]:
        """The pending answer: by volume, ascending, joined, clipped to each volume; empty without one."""
        return list(self.pending_ranges())

    def pending_ranges(self) -> Iterator[Range]:
        """The same, one by one, for answers with millions of ranges."""
        if self.has_pending:
            yield from self._inactive.ranges()

    def clear_pending(self, keep: Iterable[Range] = (), *, through: int | None = None) -> None:
        """The pending answer is durable at the target: forget it.

        Args:
            keep: but not these (they could not be read); they stay pending, under a new number.
            through: the number that is durable, if ranges were added under newer ones since.
        """
        if not self.has_pending:
            return
        half = self._inactive
        kept = list(half.bits_of(keep))
        # Before any bit is cleared: a target that has less must never be taken for one that has this.
        store_word(self._control, at.AT_CLEARED, self.answer if through is None else through)
        syscalls.memory_barrier()
        half.clear(kept)
        syscalls.memory_barrier()
        if kept:
            store_word(self._control, at.AT_ANSWER, self.answer + 1)
        else:
            store_word(self._control, at.AT_PHASE, at.PHASE_NONE)

    def add_pending(self, ranges: Iterable[Range]) -> None:
        """These must be shipped (again): they join the pending answer, or become one, under a new number."""
        half = self._inactive
        added = list(half.bits_of(ranges))
        if not added:
            return
        half.add(added)
        store_word(self._control, at.AT_ANSWER, self.answer + 1)
        syscalls.memory_barrier()
        store_word(self._control, at.AT_PHASE, at.PHASE_PENDING)

    def active_blocks(self) -> int:
        """Blocks of 4 KiB marked since the last flip; at least 1 if a flip has something to hand out."""
        return self._active.count_blocks() or int(self._short)

    def pending_blocks(self) -> int:
        """Blocks of 4 KiB of the pending answer."""
        return self._inactive.count_blocks() if self.has_pending else 0

    def statistics(self) -> WatchStatistics:
        """What the kernel side has counted."""
        infos = [syscalls.program_info(fd) for name, fd in self._fds.items() if name.startswith("program-")]
        return statistics_of(self._control, len(self._layout.regions), infos)

    def check(self) -> str:
        """Whether tracking is still whole: `none`, or a code of states.REASONS.

        `geometry-changed`, `volume-missing`, `volume-replaced`: a device is not what it was. `tracking-lost`: the
        kernel side reports a failure; only a new `attach` mends it. `passthrough`: a command whose range nobody
        knows carried data to a watched disk since the last call; said again by the next watch, unless
        `passthrough_answered`.
        """
        for each in self._volumes:
            now = refresh(each.device)
            if now is None or now.sectors == 0:
                return "volume-missing"
            if now.diskseq != each.device.diskseq or now.identity != each.device.identity:
                return "volume-replaced"
            if (now.start_sector, now.sectors) != (each.device.start_sector, each.device.sectors):
                return "geometry-changed"
        control = self._control
        unmatched = load_word(control, at.AT_UNMATCHED) != load_word(control, at.AT_UNMATCHED_SEEN)
        if unmatched or load_word(control, at.AT_FAULTS) or load_word(control, at.AT_UNRECORDED):
            store_word(control, at.AT_DOUBT, 1)
        if load_word(control, at.AT_DOUBT):
            return "tracking-lost"
        passed = sum_of(control, len(self._layout.regions), at.REGION_PASSED_OUT)
        if passed != self._passed:
            self._passed = passed
            return "passthrough"
        return "none"

    def passthrough_answered(self) -> None:
        """What `check` said about pass-through commands so far has been acted upon, in a way that a kill can't undo."""
        store_word(self._control, at.AT_PASSED_SEEN, self._passed)

    # -- inside

    @property
    def _control(self) -> mmap.mmap:
        if self._view is None:
            raise ValueError("the watch is closed")
        return self._view

    @property
    def _active(self) -> Half:
        return self._half(active=True)

    @property
    def _inactive(self) -> Half:
        return self._half(active=False)

    def _half(self, *, active: bool) -> Half:
        if self._bits_view is None:
            raise ValueError("the watch is closed")
        first = load_word(self._control, at.AT_ACTIVE) == 0
        return Half(self._bits_view, self._layout, 0 if first == active else 1)

    def _finish_flip(self) -> None:
        """Take a flip to its end, also one that a killed process began."""
        if load_word(self._control, at.AT_PHASE) != at.PHASE_FLIPPING:
            return
        syscalls.memory_barrier()
        store_word(self._control, at.AT_ACTIVE, load_word(self._control, at.AT_FLIP_TO))
        syscalls.memory_barrier()
        syscalls.grace_period()
        if self._compare() is Verdict.SHORT:
            self._heal()
        store_word(self._control, at.AT_ANSWER, self.answer + 1)
        syscalls.memory_barrier()
        store_word(self._control, at.AT_PHASE, at.PHASE_PENDING)

    def _start_audit(self) -> None:
        if self._bits_view is None:
            raise ValueError("nothing is attached")
        self._audit = Audit(self._control, self._bits_view, self._layout, self._missed)
        if self.doubt != "none":
            self._audit.begin()
            self._settle_bios()

    def _settle_bios(self) -> None:
        """Bios that were queued before the programs came complete without a record: give them a second to."""
        if any(region.bio for region in self._layout.regions):
            deadline = time.monotonic() + SETTLE_SECONDS
            while time.monotonic() < deadline and any(in_flight(each.device) for each in self._volumes):
                time.sleep(0.01)
            store_word(self._control, at.AT_UNMATCHED_SEEN, load_word(self._control, at.AT_UNMATCHED))

    def _missed(self) -> tuple[int, ...]:
        """Runs that the kernel left out: of the ledger's program, then of each copy of the completion program."""
        names = ["program-issue-0", *(f"program-request-{copy}" for copy in range(program.COPIES))]
        return tuple(syscalls.program_info(self._fds[name]).missed if name in self._fds else 0 for name in names)

    def _compare(self) -> Verdict:
        """The audit's verdict; remembers that something is to be healed."""
        if self._audit is None:
            return Verdict.BUSY
        verdict = self._audit.verdict()
        self._audit.tend(verdict)
        self._short = verdict is Verdict.SHORT
        return verdict

    def _heal(self) -> None:
        """Hand out again what was issued lately; after taking a new balance, so that nothing falls between."""
        if self._audit is None:
            return
        if not self._audit.ledger_is_whole():
            store_word(self._control, at.AT_DOUBT, 1)
        self._audit.begin()
        self._inactive.add(self._audit.issued())
        store_word(self._control, at.AT_HEALED, load_word(self._control, at.AT_HEALED) + 1)
        self._short = False

    def _adopt(self) -> str:
        """Open what is pinned and have it prove itself; the reason why not, else `none`."""
        names = {path.name for path in self._folder.iterdir()}
        if not names:
            return "untracked"
        expected = self._pin_names()
        if CONTROL_PIN not in names:
            return "unclean-stop"
        self._fds[CONTROL_PIN] = syscalls.open_pin(self._folder / CONTROL_PIN)
        if syscalls.map_shape(self._fds[CONTROL_PIN])[2] != at.CONTROL_BYTES:
            return "tracker-version"
        self._view = view = map_shared(self._fds[CONTROL_PIN], at.CONTROL_BYTES, writable=True)
        if load_word(view, at.AT_MAGIC) != at.MAGIC:
            return "unclean-stop"
        if load_word(view, at.AT_VERSION) != at.VERSION:
            return "tracker-version"
        if view[at.AT_BOOT : at.AT_BOOT + 16] != boot_hash():
            return "rebooted"
        if view[at.AT_FINGERPRINT : at.AT_FINGERPRINT + 16] != program.fingerprint():
            return "tracker-version"
        if view[at.AT_GEOMETRY : at.AT_GEOMETRY + 16] != self._layout.geometry_hash:
            return geometry_doubt(described(view), described_now(self._layout))
        if names != expected:
            return "tracking-lost"
        for name in sorted(expected - {CONTROL_PIN}):
            self._fds[name] = syscalls.open_pin(self._folder / name)
        bits_shape = (syscalls.MAP_TYPE_ARRAY, 4, 8, self._layout.words)
        if syscalls.map_shape(self._fds[BITS_PIN]) != bits_shape or not self._links_run():
            return "tracking-lost"
        if any(load_word(view, place) for place in (at.AT_DOUBT, at.AT_FAULTS, at.AT_UNRECORDED)):
            return "tracking-lost"
        self._bits_view = map_shared(self._fds[BITS_PIN], self._layout.words * 8, writable=True)
        self._passed = load_word(view, at.AT_PASSED_SEEN)
        return "none"

    def _links_run(self) -> bool:
        """Each link runs the program pinned beside it, and those are the ones that were loaded."""
        tags = hashlib.sha256()
        for name in self._program_names():
            info = syscalls.program_info(self._fds[f"program-{name}"])
            if syscalls.link_program(self._fds[f"link-{name}"]) != info.id:
                return False
            tags.update(info.tag)
        return bytes(self._control[at.AT_TAGS : at.AT_TAGS + 16]) == tags.digest()[:16]

    def _begin(self) -> None:
        """Make maps, load and attach programs, pin everything; the magic last, which makes it valid."""
        layout = self._layout
        offsets = Offsets.of(KernelTypes.load())
        with_bios = any(region.bio for region in layout.regions)
        control = self._fds[CONTROL_PIN] = syscalls.map_create(
            syscalls.MAP_TYPE_ARRAY, key_bytes=4, value_bytes=at.CONTROL_BYTES, entries=1,
            flags=syscalls.MAP_MMAPABLE, name="dr_control",
        )  # fmt: skip
        bits = self._fds[BITS_PIN] = syscalls.map_create(
            syscalls.MAP_TYPE_ARRAY, key_bytes=4, value_bytes=8, entries=layout.words,
            flags=syscalls.MAP_MMAPABLE, name="dr_bits",
        )  # fmt: skip
        if with_bios:
            self._fds[INFLIGHT_PIN] = syscalls.map_create(
                syscalls.MAP_TYPE_HASH, key_bytes=program.INFLIGHT_KEY_BYTES, value_bytes=program.INFLIGHT_VALUE_BYTES,
                entries=program.INFLIGHT_ENTRIES, name="dr_inflight",
            )  # fmt: skip
        self._view = view = map_shared(control, at.CONTROL_BYTES, writable=True)
        self._bits_view = map_shared(bits, layout.words * 8, writable=True)
        write_control(view, layout)
        tags = hashlib.sha256()
        built = program.programs(layout.regions, offsets, program.Maps(control, bits, self._fds.get(INFLIGHT_PIN, -1)))
        for each in built:
            fd = self._fds[f"program-{each.name}"] = program.load(each, offsets)
            tags.update(syscalls.program_info(fd).tag)
        store_bytes(view, at.AT_TAGS, tags.digest()[:16])
        for each in built:
            self._fds[f"link-{each.name}"] = syscalls.raw_tracepoint_open(self._fds[f"program-{each.name}"])
        for name, fd in self._fds.items():
            syscalls.pin(fd, self._folder / name)
        syscalls.memory_barrier()
        store_word(view, at.AT_MAGIC, at.MAGIC)

    def _program_names(self) -> list[str]:
        requests = not all(region.bio for region in self._layout.regions)
        kinds = ["request"] if requests else []
        if any(region.bio for region in self._layout.regions):
            kinds += ["complete", "queue"]
        names = [f"{kind}-{copy}" for kind in kinds for copy in range(program.COPIES)]
        return (["issue-0"] if requests else []) + names

    def _pin_names(self) -> set[str]:
        names = {CONTROL_PIN, BITS_PIN} | (
            {INFLIGHT_PIN} if any(region.bio for region in self._layout.regions) else set()
        )
        return names | {f"{kind}-{name}" for name in self._program_names() for kind in ("program", "link")}

    def _let_go_of_pins(self) -> None:
        if self._audit is not None:
            self._audit.close()
            self._audit = None
        for view in (self._view, self._bits_view):
            if view is not None:
                view.close()
        self._view = self._bits_view = None
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def _abandon(self) -> None:
        """A beginning failed: leave nothing pinned, so that nobody adopts half a state."""
        with contextlib.suppress(OSError):
            remove_pins(self._folder)
            self._folder.rmdir()
        self.close()


def _check_device(each: WatchedVolume) -> None:
    if each.device.refusal:
        raise DrengineError(EBPF_REFUSED, f"{each.device.name} is {each.device.refusal}")
    if not 0 < each.size_bytes <= each.device.size_bytes:
        raise DrengineError(EBPF_REFUSED, f"{each.device.name} has not the {each.size_bytes} bytes of its volume")


def _unavailable(error: OSError) -> DrengineError:
    if error.errno in (errno.EPERM, errno.EACCES):
        return DrengineError(EBPF_UNAVAILABLE, f"not permitted: {error}; it takes root, or CAP_BPF and CAP_PERFMON")
    return DrengineError(EBPF_UNAVAILABLE, str(error))
