"""The pinned kernel state of one consistency group: attach or adopt it, flip it, read it, let go of it.

Invariants, attacked by tests/agent/ebpf:

1. A write whose completion anyone has seen has its blocks' bits set in the active half, or had them set in a half
   that was handed out as pending since. No user-space store ever touches the half that programs may write to.
2. `flip` returns only after every program run that may have read the old active half has ended.
3. Every stage is a word in the pinned control value. A process killed at any moment leaves a state that the next one
   takes up: a flip begun is finished, a pending answer is handed out again.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import mmap
import os
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from drengine.model.errors import DrengineError
from drengine_agent.capture.ebpf import layout as at
from drengine_agent.capture.ebpf import program, syscalls
from drengine_agent.capture.ebpf.audit import Audit, Verdict
from drengine_agent.capture.ebpf.bits import Half, load_word, store_bytes, store_word
from drengine_agent.capture.ebpf.btf import KernelTypes, UnknownTypeError
from drengine_agent.capture.ebpf.device import BlockDevice, in_flight, refresh
from drengine_agent.capture.ebpf.errors import EBPF_REFUSED, EBPF_UNAVAILABLE
from drengine_agent.capture.ebpf.layout import Layout, WatchedVolume
from drengine_agent.capture.tracker import Range

BPFFS: Final = Path("/sys/fs/bpf")
PIN_ROOT: Final = BPFFS / "drengine"
_BPFFS_MAGIC: Final = 0xCAFE4A11
_CONTROL, _BITS, _INFLIGHT = "control", "bits", "inflight"
_LOCK_TRIES, _LOCK_PAUSE_SECONDS = 20, 0.025
SETTLE_SECONDS: Final = 1.0
LEDGER_SECONDS: Final = 60.0
"""How long a ledger is written before the next one begins, at least."""

_libc = ctypes.CDLL(None, use_errno=True)


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
        folder = _folder(root, source)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock_fd = _lock(folder, source)
        except OSError as error:
            raise _unavailable(error) from error
        watch = Watch(folder, lock_fd, volumes, layout)
        try:
            watch.doubt = watch._adopt()
            if watch.doubt != "none":
                watch._let_go_of_pins()
                _remove_pins(folder)
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
        folder = _folder(root, source)
        if not folder.is_dir():
            return False
        lock_fd = _lock(folder, source)
        try:
            _remove_pins(folder)
            folder.rmdir()
            with contextlib.suppress(OSError):
                root.rmdir()  # the last one takes the common folder along
        finally:
            os.close(lock_fd)
        return True

    @staticmethod
    def inspect(source: str, *, root: Path = PIN_ROOT) -> WatchFacts | None:
        """Look at pinned state without taking it over; None if there is none that can be read."""
        folder = _folder(root, source)
        try:
            with contextlib.ExitStack() as stack:
                control_fd = syscalls.open_pin(folder / _CONTROL)
                stack.callback(os.close, control_fd)
                view = stack.enter_context(contextlib.closing(_map(control_fd, at.CONTROL_BYTES, writable=False)))
                if load_word(view, at.AT_MAGIC) != at.MAGIC or load_word(view, at.AT_VERSION) != at.VERSION:
                    return None
                return _facts(folder, view, stack)
        except (OSError, ValueError, KeyError):
            return None

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
        return _statistics(self._control, len(self._layout.regions), infos)

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
        passed = _sum(control, len(self._layout.regions), at.REGION_PASSED_OUT)
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
        if _CONTROL not in names:
            return "unclean-stop"
        self._fds[_CONTROL] = syscalls.open_pin(self._folder / _CONTROL)
        if syscalls.map_shape(self._fds[_CONTROL])[2] != at.CONTROL_BYTES:
            return "tracker-version"
        self._view = view = _map(self._fds[_CONTROL], at.CONTROL_BYTES, writable=True)
        if load_word(view, at.AT_MAGIC) != at.MAGIC:
            return "unclean-stop"
        if load_word(view, at.AT_VERSION) != at.VERSION:
            return "tracker-version"
        if view[at.AT_BOOT : at.AT_BOOT + 16] != _boot_hash():
            return "rebooted"
        if view[at.AT_FINGERPRINT : at.AT_FINGERPRINT + 16] != program.fingerprint():
            return "tracker-version"
        if view[at.AT_GEOMETRY : at.AT_GEOMETRY + 16] != self._layout.geometry_hash:
            return _geometry_doubt(_described(view), _described_now(self._layout))
        if names != expected:
            return "tracking-lost"
        for name in sorted(expected - {_CONTROL}):
            self._fds[name] = syscalls.open_pin(self._folder / name)
        bits_shape = (syscalls.MAP_TYPE_ARRAY, 4, 8, self._layout.words)
        if syscalls.map_shape(self._fds[_BITS]) != bits_shape or not self._links_run():
            return "tracking-lost"
        if any(load_word(view, place) for place in (at.AT_DOUBT, at.AT_FAULTS, at.AT_UNRECORDED)):
            return "tracking-lost"
        self._bits_view = _map(self._fds[_BITS], self._layout.words * 8, writable=True)
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
        offsets = program.Offsets.of(KernelTypes.load())
        with_bios = any(region.bio for region in layout.regions)
        control = self._fds[_CONTROL] = syscalls.map_create(
            syscalls.MAP_TYPE_ARRAY, key_bytes=4, value_bytes=at.CONTROL_BYTES, entries=1,
            flags=syscalls.MAP_MMAPABLE, name="dr_control",
        )  # fmt: skip
        bits = self._fds[_BITS] = syscalls.map_create(
            syscalls.MAP_TYPE_ARRAY, key_bytes=4, value_bytes=8, entries=layout.words,
            flags=syscalls.MAP_MMAPABLE, name="dr_bits",
        )  # fmt: skip
        if with_bios:
            self._fds[_INFLIGHT] = syscalls.map_create(
                syscalls.MAP_TYPE_HASH, key_bytes=program.INFLIGHT_KEY_BYTES, value_bytes=program.INFLIGHT_VALUE_BYTES,
                entries=program.INFLIGHT_ENTRIES, name="dr_inflight",
            )  # fmt: skip
        self._view = view = _map(control, at.CONTROL_BYTES, writable=True)
        self._bits_view = _map(bits, layout.words * 8, writable=True)
        _write_control(view, layout)
        tags = hashlib.sha256()
        built = program.programs(layout.regions, offsets, program.Maps(control, bits, self._fds.get(_INFLIGHT, -1)))
        for each in built:
            fd = self._fds[f"program-{each.name}"] = load(each, offsets)
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
        names = {_CONTROL, _BITS} | ({_INFLIGHT} if any(region.bio for region in self._layout.regions) else set())
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
            _remove_pins(self._folder)
            self._folder.rmdir()
        self.close()


def mount_bpffs(root: Path = PIN_ROOT) -> None:
    """Mount the BPF file system at its usual place if it isn't.

    Raises:
        DrengineError: EBPF_UNAVAILABLE, it can't be mounted.
    """
    if BPFFS not in (root, *root.parents) or _is_bpffs(BPFFS):
        return
    if _libc.mount(b"bpf", os.fsencode(BPFFS), b"bpf", 0, b"mode=0700") != 0:
        code = ctypes.get_errno()
        raise DrengineError(EBPF_UNAVAILABLE, f"{BPFFS} can't be mounted: {os.strerror(code)}")


def _is_bpffs(path: Path) -> bool:
    buffer = ctypes.create_string_buffer(256)
    if _libc.statfs(os.fsencode(path), buffer) != 0:
        return False
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF == _BPFFS_MAGIC


def _check_device(each: WatchedVolume) -> None:
    if each.device.refusal:
        raise DrengineError(EBPF_REFUSED, f"{each.device.name} is {each.device.refusal}")
    if not 0 < each.size_bytes <= each.device.size_bytes:
        raise DrengineError(EBPF_REFUSED, f"{each.device.name} has not the {each.size_bytes} bytes of its volume")


def _folder(root: Path, source: str) -> Path:
    """bpffs allows no dots in names; source names have no tilde."""
    return root / source.replace(".", "~")


def _lock(folder: Path, source: str) -> int:
    """An open folder with an exclusive flock; it ends with the process.

    Raises:
        DrengineError: EBPF_REFUSED, another process has it.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for turn in range(_LOCK_TRIES):  # `inspect` holds a shared one for a moment
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if turn < _LOCK_TRIES - 1:
                time.sleep(_LOCK_PAUSE_SECONDS)
        else:
            return fd
    os.close(fd)
    raise DrengineError(EBPF_REFUSED, f"another process watches the volumes of {source!r}")


def _is_owned(folder: Path) -> bool:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _remove_pins(folder: Path) -> None:
    """Links first: nothing runs without its maps' names."""
    for path in sorted(folder.iterdir(), key=lambda each: not each.name.startswith("link-")):
        path.unlink()


def _map(fd: int, length: int, *, writable: bool) -> mmap.mmap:
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    return mmap.mmap(fd, length, mmap.MAP_SHARED, protection)


def _write_control(view: mmap.mmap, layout: Layout) -> None:
    store_word(view, at.AT_VERSION, at.VERSION)
    store_word(view, at.AT_HALF_WORDS, layout.half_words)
    store_word(view, at.AT_LEDGER, 2 * layout.half_words)
    store_bytes(view, at.AT_EPOCH, os.urandom(16))
    store_bytes(view, at.AT_BOOT, _boot_hash())
    store_bytes(view, at.AT_FINGERPRINT, program.fingerprint())
    store_bytes(view, at.AT_GEOMETRY, layout.geometry_hash)
    store_word(view, at.AT_STARTED_NS, time.time_ns())
    store_word(view, at.AT_VOLUMES_LENGTH, len(layout.volumes_json))
    store_bytes(view, at.AT_VOLUMES, layout.volumes_json)
    for index, region in enumerate(layout.regions):
        here = at.AT_REGIONS + index * at.REGION_BYTES
        store_word(view, here + at.REGION_START, region.start_sector)
        store_word(view, here + at.REGION_END, region.end_sector)
        store_word(view, here + at.REGION_FINE, region.fine_bit)
        store_word(view, here + at.REGION_COARSE, region.coarse_bit)
        store_word(view, here + at.REGION_LEDGER, region.ledger_bit)


def load(each: program.Program, offsets: program.Offsets) -> int:
    """Have the kernel take a program; if the verifier refuses, again with its log, for the error.

    Raises:
        OSError: refused; a VerifierError with the end of the log if the verifier did.
    """
    name, btf_id = f"dr_{each.name.replace('-', '_')}", offsets.events[each.event]
    try:
        return syscalls.program_load(each.code, attach_btf_id=btf_id, name=name)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOMEM):
            raise
        return syscalls.program_load(each.code, attach_btf_id=btf_id, name=name, log=True)


def _boot_hash() -> bytes:
    return hashlib.sha256(f"{syscalls.boot_id()} {platform.release()}".encode()).digest()[:16]


def _described(view: mmap.mmap) -> list[dict[str, Any]]:
    length = min(load_word(view, at.AT_VOLUMES_LENGTH), at.CONTROL_BYTES - at.AT_VOLUMES)
    return list(json.loads(view[at.AT_VOLUMES : at.AT_VOLUMES + length]))


def _described_now(layout: Layout) -> list[dict[str, Any]]:
    return list(json.loads(layout.volumes_json))


def _watched(each: dict[str, Any]) -> WatchedVolume:
    """A volume out of its description, enough to plan the same layout."""
    device = BlockDevice(
        each["device"], each["number"], each["disk"], each["start_sector"], each["sectors"], each["bio"],
        each["diskseq"], each["identity"],
    )  # fmt: skip
    return WatchedVolume(each["volume"], device, each["size_bytes"])


def _geometry_doubt(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> str:
    """Why the volumes are not what they were: `tracking-lost` if a device was away, else `geometry-changed`."""
    known = {each.get("volume"): each for each in before}
    same = ("number", "disk", "diskseq", "identity")
    for each in now:
        old = known.get(each["volume"])
        if old is not None and any(old.get(key) != each[key] for key in same):
            return "tracking-lost"
    return "geometry-changed"


def _sum(view: mmap.mmap, regions: int, place: int) -> int:
    return sum(load_word(view, at.AT_REGIONS + index * at.REGION_BYTES + place) for index in range(regions))


def _statistics(view: mmap.mmap, regions: int, infos: Sequence[syscalls.ProgramInfo]) -> WatchStatistics:
    return WatchStatistics(
        load_word(view, at.AT_COUNTER),
        _sum(view, regions, at.REGION_PASSED_OUT),
        _sum(view, regions, at.REGION_PASSED_IN),
        sum(info.run_count for info in infos),
        sum(info.run_ns for info in infos),
        sum(info.missed for info in infos),
        load_word(view, at.AT_UNRECORDED),
        load_word(view, at.AT_UNMATCHED),
        load_word(view, at.AT_FAULTS),
        load_word(view, at.AT_HEALED),
    )


def _facts(folder: Path, view: mmap.mmap, stack: contextlib.ExitStack) -> WatchFacts:
    described = _described(view)
    layout = at.plan([_watched(each) for each in described])
    bits_fd = syscalls.open_pin(folder / _BITS)
    stack.callback(os.close, bits_fd)
    bits = stack.enter_context(contextlib.closing(_map(bits_fd, layout.words * 8, writable=False)))
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
        _is_owned(folder),
        view[at.AT_BOOT : at.AT_BOOT + 16] == _boot_hash()
        and view[at.AT_FINGERPRINT : at.AT_FINGERPRINT + 16] == program.fingerprint(),
        tuple(described),
        Half(bits, layout, active).count_blocks(),
        Half(bits, layout, 1 - active).count_blocks() if pending else 0,
        layout.words * 8,
        _statistics(view, len(layout.regions), infos),
    )


def _unavailable(error: OSError) -> DrengineError:
    if error.errno in (errno.EPERM, errno.EACCES):
        return DrengineError(EBPF_UNAVAILABLE, f"not permitted: {error}; it takes root, or CAP_BPF and CAP_PERFMON")
    return DrengineError(EBPF_UNAVAILABLE, str(error))
