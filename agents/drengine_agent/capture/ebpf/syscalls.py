"""The system calls behind the tracker: bpf(2) and membarrier(2), with constants of the kernel's stable interface.

Nothing here knows what the programs do. Failures are OSError with the call's name; `watch` gives them a meaning.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAP_TYPE_HASH: Final = 1
MAP_TYPE_ARRAY: Final = 2
MAP_MMAPABLE: Final = 1 << 10
PROGRAM_TYPE_TRACING: Final = 26
ATTACH_TYPE_RAW_TRACEPOINT: Final = 23
LOG_BYTES_MAX: Final = 1 << 20

_MAP_TYPE_ARRAY_OF_MAPS: Final = 12
_MAP_CREATE, _MAP_UPDATE, _PROGRAM_LOAD, _OBJECT_PIN, _OBJECT_GET = 0, 2, 5, 6, 7
_OBJECT_INFO, _RAW_TRACEPOINT_OPEN = 15, 17
_NUMBERS: Final = {"x86_64": (321, 324), "aarch64": (280, 283), "riscv64": (280, 283), "s390x": (351, 356)}
_MEMBARRIER_GLOBAL, _MEMBARRIER_PRIVATE, _MEMBARRIER_REGISTER_PRIVATE = 1, 1 << 3, 1 << 4
_ATTRIBUTE_BYTES = 128
_BPF_TAG_BYTES = 8

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel says about a loaded program.

    Attributes:
        id: the kernel's number of it.
        tag: the kernel's hash of its instructions.
        run_ns, run_count: time and runs; zero unless the sysctl kernel.bpf_stats_enabled is 1.
        missed: runs that the kernel left out because the program was running on that CPU already.
    """

    id: int
    tag: bytes
    run_ns: int
    run_count: int
    missed: int


def supported_machine() -> bool:
    """Whether this processor's system call numbers are known here."""
    return platform.machine() in _NUMBERS


def boot_id() -> str:
    """The kernel's random name of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def map_create(kind: int, *, key_bytes: int, value_bytes: int, entries: int, flags: int = 0, name: str = "") -> int:
    """Make a map and return its file descriptor."""
    attribute = struct.pack("<IIIIIII16s", kind, key_bytes, value_bytes, entries, flags, 0, 0, name.encode()[:15])
    return _bpf(_MAP_CREATE, attribute, "map create")


def map_update(map_fd: int, key: bytes, value: bytes) -> None:
    """Set one element."""
    key_buffer, value_buffer = ctypes.create_string_buffer(key), ctypes.create_string_buffer(value)
    attribute = struct.pack("<IIQQQ", map_fd, 0, ctypes.addressof(key_buffer), ctypes.addressof(value_buffer), 0)
    _bpf(_MAP_UPDATE, attribute, "map update")


def program_load(instructions: bytes, *, attach_btf_id: int, name: str, log: bool = False) -> int:
    """Have the kernel verify and take a tracing program; return its file descriptor.

    Raises:
        VerifierError: the verifier refused it; with the end of its log if `log`.
        OSError: it was refused before that (privileges, memory).
    """
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"Dual MIT/GPL")
    text = ctypes.create_string_buffer(LOG_BYTES_MAX) if log else None
    attribute = struct.pack(
        "<IIQQIIQII16sIIIIQIIQII",
        PROGRAM_TYPE_TRACING, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(licence),
        1 if log else 0, LOG_BYTES_MAX if log else 0, ctypes.addressof(text) if text else 0, 0, 0,
        name.encode()[:15], 0, ATTACH_TYPE_RAW_TRACEPOINT, 0, 0, 0, 0, 0, 0, 0, attach_btf_id,
    )  # fmt: skip
    try:
        return _bpf(_PROGRAM_LOAD, attribute, "program load")
    except OSError as error:
        if text is None:
            raise
        raise VerifierError(error.errno or 0, text.value.decode("utf-8", "replace")) from error


class VerifierError(OSError):
    """The kernel's verifier refused a program; its log's last lines tell why."""

    def __init__(self, code: int, log: str) -> None:
        """Keep at most 2,000 characters of the log's end."""
        self.log = log.strip()[-2000:]
        super().__init__(code, f"program load: {os.strerror(code)}: {self.log}")


def raw_tracepoint_open(program_fd: int) -> int:
    """Attach a program to the tracepoint it was loaded for; the link's file descriptor. Attached while that lives."""
    return _bpf(_RAW_TRACEPOINT_OPEN, struct.pack("<QII", 0, program_fd, 0), "raw tracepoint open")


def pin(fd: int, path: Path) -> None:
    """Give a map, program or link a name in bpffs, which keeps it alive."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    _bpf(_OBJECT_PIN, struct.pack("<QIIII", ctypes.addressof(name), fd, 0, 0, 0), f"pin {path}")


def open_pin(path: Path) -> int:
    """The file descriptor of what lies pinned at `path`."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _bpf(_OBJECT_GET, struct.pack("<QIIII", ctypes.addressof(name), 0, 0, 0, 0), f"open {path}")


def program_info(fd: int) -> ProgramInfo:
    """What the kernel says about a program."""
    info = _info(fd, 256)
    _, number, tag = struct.unpack_from("<II8s", info)
    run_ns, run_count, missed = struct.unpack_from("<QQQ", info, 192)
    return ProgramInfo(number, tag[:_BPF_TAG_BYTES], run_ns, run_count, missed)


def map_shape(fd: int) -> tuple[int, int, int, int]:
    """A map's type, key bytes, value bytes and entries."""
    kind, _, key_bytes, value_bytes, entries = struct.unpack_from("<IIIII", _info(fd, 80))
    return kind, key_bytes, value_bytes, entries


def link_program(fd: int) -> int:
    """The number of the program that a link runs."""
    _, _, program = struct.unpack_from("<III", _info(fd, 64))
    return int(program)


def grace_period() -> None:
    """Return when every program run that had begun before the call has ended.

    membarrier(GLOBAL) is synchronize_rcu() by its definition. Where the kernel refuses it (nohz_full), replacing
    a map inside a map does: such an update returns only when no program can be using the old one any more.
    """
    if _membarrier(_MEMBARRIER_GLOBAL) == 0:
        return
    inner = map_create(MAP_TYPE_ARRAY, key_bytes=4, value_bytes=8, entries=1)
    try:
        attribute = struct.pack("<IIIIII", _MAP_TYPE_ARRAY_OF_MAPS, 4, 4, 1, 0, inner)
        outer = _bpf(_MAP_CREATE, attribute, "map create")
        try:
            map_update(outer, bytes(4), struct.pack("<I", inner))
        finally:
            os.close(outer)
    finally:
        os.close(inner)


def memory_barrier() -> None:
    """No load or store of this thread moves across the call."""
    if _membarrier(_MEMBARRIER_PRIVATE) != 0:
        _membarrier(_MEMBARRIER_REGISTER_PRIVATE)
        _membarrier(_MEMBARRIER_PRIVATE)


def _membarrier(command: int) -> int:
    return int(_libc.syscall(_numbers()[1], command, 0, 0))


def _info(fd: int, size: int) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    _bpf(_OBJECT_INFO, struct.pack("<IIQ", fd, size, ctypes.addressof(buffer)), "object info")
    return buffer.raw


def _numbers() -> tuple[int, int]:
    try:
        return _NUMBERS[platform.machine()]
    except KeyError:
        raise OSError(errno.ENOSYS, f"no system call numbers for {platform.machine()}") from None


def _bpf(command: int, attribute: bytes, what: str) -> int:
    buffer = ctypes.create_string_buffer(attribute, _ATTRIBUTE_BYTES)
    result = int(_libc.syscall(_numbers()[0], command, buffer, _ATTRIBUTE_BYTES))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result
