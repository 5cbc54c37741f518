"""Whom a listening socket of another process of ours hears: the kernel drops what comes from elsewhere.

tgt lets in whoever has one of the allowed names *or* one of the allowed addresses; here both are asked for. So names
are tgt's to judge, and addresses the kernel's: a packet filter on the listening socket, which each accepted one
inherits.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from drengine.transport.networks import LOOPBACK, Network

_SO_ATTACH_FILTER = 26
_PIDFD_GETFD = 438
_LOAD_WORD, _AND, _JUMP_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_NETWORK_HEADER = 0xFFF00000  # SKF_NET_OFF
_SOURCE = {4: 12, 6: 8}
"""Where a packet's source address lies in its IP header."""
_INSTRUCTION = struct.Struct("=HBBI")
_TAKE_ALL, _DROP = 0xFFFFFFFF, 0


def source_filter(version: int, networks: Iterable[Network]) -> bytes:
    """A classic BPF program (see filter.txt of the kernel) that passes packets from these networks, and loopback."""
    ours = [each for each in (*LOOPBACK, *networks) if each.version == version]
    code = b"".join(b"".join(_passes(each, _SOURCE[version])) for each in ours)
    return code + _INSTRUCTION.pack(_RETURN, 0, 0, _DROP)


def _passes(network: Network, at: int) -> Iterator[bytes]:
    """Let the packet in if its source is inside; else go on behind this piece."""
    size = network.max_prefixlen // 32
    addresses = struct.unpack(f">{size}I", network.network_address.packed)
    masks = struct.unpack(f">{size}I", network.netmask.packed)
    for number, (address, mask) in enumerate(zip(addresses, masks, strict=True)):
        yield _INSTRUCTION.pack(_LOAD_WORD, 0, 0, _NETWORK_HEADER + at + 4 * number)
        yield _INSTRUCTION.pack(_AND, 0, 0, mask)
        left = 3 * (size - number - 1) + 1
        yield _INSTRUCTION.pack(_JUMP_EQUAL, 0, left, address)
    yield _INSTRUCTION.pack(_RETURN, 0, 0, _TAKE_ALL)


def hear_only(process: int, port: int, networks: Iterable[Network]) -> None:
    """Have the sockets on which a process listens at a port take packets from these networks only, and loopback.

    Raises:
        OSError: it listens not there, or its sockets can't be had.
    """
    networks = tuple(networks)
    pidfd = os.pidfd_open(process)
    try:
        heard = [_shut(pidfd, number, port, networks) for number in _descriptors(process)]
    finally:
        os.close(pidfd)
    if not any(heard):
        raise OSError(f"process {process} does not listen at port {port}")


def _descriptors(process: int) -> list[int]:
    return [int(each.name) for each in Path(f"/proc/{process}/fd").iterdir() if _is_socket(each)]


def _is_socket(entry: Path) -> bool:
    try:
        return os.readlink(entry).startswith("socket:")  # noqa: PTH115 - no path, but what the kernel calls it
    except OSError:
        return False


def _shut(pidfd: int, number: int, port: int, networks: tuple[Network, ...]) -> bool:
    """Whether this descriptor of the process is a socket that listens at the port; it has a filter then."""
    libc = ctypes.CDLL(None, use_errno=True)
    copy = libc.syscall(_PIDFD_GETFD, pidfd, number, 0)
    if copy < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    with socket.socket(fileno=copy) as shared:
        if shared.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        listens = shared.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if not listens or shared.getsockname()[1] != port:
            return False
        code = source_filter(4 if shared.family == socket.AF_INET else 6, networks)
        room = ctypes.create_string_buffer(code)
        program = struct.pack("HxxxxxxP", len(code) // _INSTRUCTION.size, ctypes.addressof(room))
        shared.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        return True
