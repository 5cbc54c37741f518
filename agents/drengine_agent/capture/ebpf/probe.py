"""What this kernel can do for the tracker, found out by trying it; and the tracker tried on a small loop device.

Everything made here is taken away again. The answers are values, so that any other kernel can be described by writing
them down: empty text means that it worked, other text is the kernel's own reason why not.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import platform
import resource
import secrets
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from drengine.model.errors import DrengineError
from drengine_agent.capture.ebpf import layout as at
from drengine_agent.capture.ebpf import program, syscalls
from drengine_agent.capture.ebpf.btf import KernelTypes, UnknownTypeError
from drengine_agent.capture.ebpf.device import BlockDevice
from drengine_agent.capture.ebpf.layout import Region, WatchedVolume
from drengine_agent.capture.ebpf.offsets import REQUEST_EVENT, Offsets
from drengine_agent.capture.ebpf.pins import PIN_ROOT, mount_bpffs
from drengine_agent.capture.ebpf.watch import Watch
from drengine_agent.capture.tracker import Range

KERNEL_MIN: Final = {"x86_64": (5, 12), "aarch64": (5, 18), "riscv64": (5, 19), "s390x": (5, 12)}
"""From where on the processor's JIT knows the atomic operations; a hint for people, the trials decide."""

_CAPABILITIES: Final = {"CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
_LOOP_CONTROL: Final = Path("/dev/loop-control")
_LOOP_GET_FREE, _LOOP_CONFIGURE, _LOOP_CLEAR = 0x4C82, 0x4C0A, 0x4C01
_LOOP_CONFIG_BYTES, _LOOP_FLAGS_AT, _LOOP_AUTOCLEAR = 304, 60, 4
_LOOP_TRIES: Final = 20
_TEST_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """What was tried, in the order in which tracking needs it. Empty text: it works.

    Attributes:
        release, machine: as `uname` says.
        capabilities: those of CAP_SYS_ADMIN, CAP_BPF and CAP_PERFMON that this process has.
        lockdown: the kernel's mode, or empty. Neither mode keeps the tracker from working; it is told for people.
        memory_lock_bytes: RLIMIT_MEMLOCK; counts only before kernel 5.11. -1 is unlimited.
        system_call: bpf(2) on this machine.
        types: the kernel's description of its own types (BTF), with all that the programs need.
        maps: an array map that can be mapped into memory.
        request_programs: the verifier takes the programs for devices that complete requests.
        bio_programs: the same for devices that complete bios.
        attaching: a program can be attached to a tracepoint of the block layer.
        pinning: bpffs is mounted, or was just mounted, and a map can be pinned there.
        grace_period: the kernel can wait for running programs.
    """

    release: str
    machine: str
    capabilities: tuple[str, ...]
    lockdown: str
    memory_lock_bytes: int
    system_call: str
    types: str
    maps: str
    request_programs: str
    bio_programs: str
    attaching: str
    pinning: str
    grace_period: str

    @property
    def obstacles(self) -> dict[str, str]:
        """What keeps the tracker from working, by name; empty when nothing does (bio programs apart)."""
        names = ("system_call", "types", "maps", "request_programs", "attaching", "pinning", "grace_period")
        return {name: getattr(self, name) for name in names if getattr(self, name)}


@dataclass(frozen=True, slots=True)
class SelfTest:
    """The tracker tried on a loop device of its own.

    Attributes:
        passed: what was written was seen, exactly.
        seen: what was seen, or why it could not be tried.
        events: the tracepoints that were used.
        seconds: how long it took.
    """

    passed: bool
    seen: str
    events: tuple[str, ...]
    seconds: float


def probe() -> KernelFacts:
    """Try everything that tracking needs. Takes about half a second; mounts bpffs if it isn't."""
    trials: dict[str, str] = {}
    types: list[Offsets] = []
    maps: list[program.Maps] = []
    loaded: list[int] = []
    with contextlib.ExitStack() as stack:

        def keep(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        def make_maps() -> None:
            control = keep(_array(at.CONTROL_BYTES, 1))
            bits = keep(_array(8, at.PAGE_WORDS * 4))
            key, value = program.INFLIGHT_KEY_BYTES, program.INFLIGHT_VALUE_BYTES
            inflight = keep(syscalls.map_create(syscalls.MAP_TYPE_HASH, key_bytes=key, value_bytes=value, entries=8))
            mmap.mmap(control, at.CONTROL_BYTES, mmap.MAP_SHARED, mmap.PROT_READ).close()
            maps.append(program.Maps(control, bits, inflight))

        def load_all(*, bio: bool) -> None:
            region = Region(_NOBODY, bio, 0, 8, 0, 0)
            for each in program.programs([region], types[0], maps[0])[:: program.COPIES]:
                loaded.append(keep(program.load(each, types[0])))

        _try(trials, "system_call", _system_call)
        _try(trials, "types", lambda: types.append(Offsets.of(KernelTypes.load())))
        _try(trials, "maps", make_maps)
        _try(trials, "request_programs", lambda: load_all(bio=False))
        _try(trials, "bio_programs", lambda: load_all(bio=True))
        _try(trials, "attaching", lambda: keep(syscalls.raw_tracepoint_open(loaded[0])))
        _try(trials, "pinning", lambda: _pin(maps[0].control))
        _try(trials, "grace_period", syscalls.grace_period)
    return KernelFacts(
        platform.release(),
        platform.machine(),
        _capabilities(),
        _lockdown(),
        resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        **trials,
    )


def self_test() -> SelfTest:
    """Make a small loop device of memory, watch it, write, see the bits, and take everything away. Never raises."""
    began = time.monotonic()
    try:
        with _loop_device(_TEST_BYTES) as device:
            problem = _watch_writes(device)
    except (OSError, DrengineError) as error:
        problem = f"could not be tried: {error}"
    seen = problem or f"3 writes to a loop device of {_TEST_BYTES >> 20} MiB, and exactly their blocks marked"
    return SelfTest(not problem, seen, (REQUEST_EVENT,), time.monotonic() - began)


_NOBODY: Final = (1 << 32) - 1
"""No disk has this number."""


def _watch_writes(device: Path) -> str:
    """Why the bits are not those of the writes; empty when they are."""
    found = BlockDevice.of_path(device)
    source = f"self-test-{secrets.token_hex(4)}"
    try:
        watch = Watch.attach(source, [WatchedVolume(1, found, found.size_bytes)])
        try:
            wanted = [Range(1, 0, 4096), Range(1, 64 << 10, 128 << 10), Range(1, _TEST_BYTES - 4096, 4096)]
            with contextlib.closing(mmap.mmap(-1, 128 << 10)) as buffer, memoryview(buffer) as view:
                fd = os.open(device, os.O_RDWR | os.O_DIRECT)
                try:
                    for each in wanted:
                        with view[: each.length] as part:
                            os.pwrite(fd, part, each.offset)
                finally:
                    os.close(fd)
            watch.flip()
            marked = watch.pending()
            return "" if marked == wanted else f"wrote {_text(wanted)}, saw {_text(marked)}"
        finally:
            watch.close()
    finally:
        Watch.detach(source)


@contextlib.contextmanager
def _loop_device(size: int) -> Iterator[Path]:
    """A loop device over memory. It goes with its last user, so also when this process is killed."""
    backing = os.memfd_create("drengine-self-test")
    try:
        os.ftruncate(backing, size)
        config = bytearray(_LOOP_CONFIG_BYTES)
        struct.pack_into("<I", config, 0, backing)
        struct.pack_into("<I", config, _LOOP_FLAGS_AT, _LOOP_AUTOCLEAR)
        device, fd = _claim_loop(backing)
        try:
            yield device
            fcntl.ioctl(fd, _LOOP_CLEAR)
        finally:
            os.close(fd)
    finally:
        os.close(backing)


def _claim_loop(backing: int) -> tuple[Path, int]:
    """A free loop device, set up and open."""
    config = bytearray(_LOOP_CONFIG_BYTES)
    struct.pack_into("<I", config, 0, backing)
    struct.pack_into("<I", config, _LOOP_FLAGS_AT, _LOOP_AUTOCLEAR)
    with _LOOP_CONTROL.open("r+b", buffering=0) as control:
        for _ in range(_LOOP_TRIES):  # somebody else may take the free one first
            device = Path(f"/dev/loop{fcntl.ioctl(control, _LOOP_GET_FREE)}")
            fd = os.open(device, os.O_RDWR)
            try:
                fcntl.ioctl(fd, _LOOP_CONFIGURE, bytes(config))
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return device, fd
    raise OSError(errno.EBUSY, "no loop device is free")


def _try(trials: dict[str, str], name: str, trial: Callable[[], object]) -> None:
    try:
        trial()
        trials[name] = ""
    except (OSError, DrengineError, UnknownTypeError) as error:
        trials[name] = str(error)
    except IndexError:
        trials[name] = "what it needs is missing"


def _system_call() -> None:
    """bpf(2) exists here: an unknown command is refused as such."""
    if not syscalls.supported_machine():
        raise OSError(errno.ENOSYS, f"system call numbers of {platform.machine()} are not known")
    os.close(_array(8, 1, flags=0))


def _array(value_bytes: int, entries: int, flags: int = syscalls.MAP_MMAPABLE) -> int:
    kind = syscalls.MAP_TYPE_ARRAY
    return syscalls.map_create(kind, key_bytes=4, value_bytes=value_bytes, entries=entries, flags=flags)


def _pin(fd: int) -> None:
    mount_bpffs()
    folder = PIN_ROOT.with_name(f"drengine-probe-{secrets.token_hex(4)}")
    folder.mkdir(mode=0o700)
    try:
        syscalls.pin(fd, folder / "map")
        (folder / "map").unlink()
    finally:
        folder.rmdir()


def _capabilities() -> tuple[str, ...]:
    lines = Path("/proc/self/status").read_text().splitlines()
    held = next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)
    return tuple(name for name, bit in _CAPABILITIES.items() if held >> bit & 1)


def _lockdown() -> str:
    try:
        text = Path("/sys/kernel/security/lockdown").read_text()
    except OSError:
        return ""
    return text.partition("[")[2].partition("]")[0]


def _text(ranges: list[Range]) -> str:
    return ", ".join(f"{each.offset}+{each.length}" for each in ranges) or "nothing"
