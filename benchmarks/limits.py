"""What this machine can do at most, measured in the same run: the scale that every figure is read against."""

from __future__ import annotations

import os
import socket
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import xxhash
import zstandard

MIB = 1 << 20


def _best(action: Callable[[], int], rounds: int = 3) -> float:
    """Best bytes per second over a few rounds."""
    best = 0.0
    for _ in range(rounds):
        begun = time.perf_counter()
        done = action()
        best = max(best, done / (time.perf_counter() - begun))
    return best


SYNCED = 200
_SYNCED_BYTES = 4096


def sync_latency(folder: Path) -> dict[str, float]:
    """Milliseconds of an appended 4 KiB block and its fdatasync: every durable point waits for two such syncs."""
    path, runs, block = folder / "limit.sync", [], os.urandom(_SYNCED_BYTES)
    with path.open("wb", buffering=0) as file:
        for _ in range(SYNCED):
            begun = time.perf_counter()
            file.write(block)
            os.fdatasync(file.fileno())
            runs.append((time.perf_counter() - begun) * 1e3)
    path.unlink()
    ranks = statistics.quantiles(runs, n=100)
    return {"median": ranks[49], "99th percentile": ranks[98], "worst": max(runs)}


def measure(image: Path, folder: Path) -> dict[str, float]:
    """Bytes per second of each limit; the image should be in the page cache."""
    buffer = bytearray(4 * MIB)
    sample = image.read_bytes()[: 256 * MIB]
    view = memoryview(sample)
    pieces = [view[at : at + MIB] for at in range(0, len(sample), MIB)]

    def read_cached() -> int:
        with image.open("rb", buffering=0) as source:
            return sum(iter(lambda: source.readinto(buffer), 0))

    copied = bytearray(len(sample))

    def copy() -> int:
        memoryview(copied)[:] = view  # in place: a slice of the bytearray would be copied twice
        return len(view)

    def hashed() -> int:
        for piece in pieces:
            xxhash.xxh3_128_digest(piece)
        return len(view)

    def compress(level: int) -> Callable[[], int]:
        def run() -> int:
            compressor = zstandard.ZstdCompressor(level=level)
            for piece in pieces:
                compressor.compress(piece)
            return len(view)

        return run

    packed = [zstandard.ZstdCompressor(level=1).compress(piece) for piece in pieces]

    def decompress() -> int:
        decompressor = zstandard.ZstdDecompressor()
        for piece in packed:
            decompressor.decompress(piece)
        return len(view)

    def write_new() -> int:
        path = folder / "limit.bin"
        with path.open("wb", buffering=0) as target:
            for piece in pieces:
                target.write(piece)
            os.fdatasync(target.fileno())
        path.unlink()
        return len(view)

    limits = {
        "read from cache": _best(read_cached),
        "memory copy": _best(copy),
        "xxh3-128": _best(hashed),
        "zstd -5": _best(compress(-5), 1),
        "zstd -1": _best(compress(-1), 1),
        "zstd 1": _best(compress(1), 1),
        "zstd decompression": _best(decompress, 2),
        "write and fdatasync, new file": _best(write_new, 2),
        "loopback TCP": _best(_loopback, 2),
    }
    return limits


def _loopback() -> int:
    """1 GiB from one thread to another over loopback."""
    listener = socket.create_server(("127.0.0.1", 0))
    block, total = bytes(MIB), 1 << 30

    def send() -> None:
        with socket.create_connection(listener.getsockname()) as sender:
            for _ in range(total // MIB):
                sender.sendall(block)

    thread = threading.Thread(target=send)
    thread.start()
    received, buffer = 0, bytearray(MIB)
    with listener.accept()[0] as receiver:
        while got := receiver.recv_into(buffer):
            received += got
    thread.join()
    listener.close()
    return received
