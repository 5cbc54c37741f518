"""fio's nbd engine on an export, whoever serves it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from benchmarks.peers import run

FLUSH_EVERY = 32
READS = ("--rw=randread", "--bs=4k")
WRITES = ("--rw=randwrite", "--bs=4k")
FLUSHED_WRITES = (*WRITES, f"--fsync={FLUSH_EVERY}")
LARGE_READS, LARGE_WRITES = ("--rw=read", "--bs=1m"), ("--rw=write", "--bs=1m")


@dataclass(frozen=True)
class Load:
    """What fio did: operations and bytes a second, and the time that most and nearly all operations needed."""

    rate: float
    bytes_per_second: float
    p50_ms: float
    p99_ms: float

    def __str__(self) -> str:
        return f"p50 {self.p50_ms:.2f} ms, p99 {self.p99_ms:.2f} ms"


def load(address: str, size_bytes: int, depth: int, *options: str, seconds: float | None = None) -> Load:
    """Run one kind of operation on an export, for so long, or until `options` end it.

    Raises:
        RuntimeError: an operation failed.
    """
    timed = () if seconds is None else ("--time_based", f"--runtime={seconds}")
    report = run(
        "fio", "--name=load", "--ioengine=nbd", f"--uri={address}", f"--iodepth={depth}", f"--size={size_bytes}",
        "--randrepeat=0", "--refill_buffers", "--buffer_compress_percentage=50", "--output-format=json",
        *timed, *options,
    )  # fmt: skip
    job = json.loads(report[report.index("{") : report.rindex("}") + 1])["jobs"][0]
    if job["error"]:
        raise RuntimeError(f"fio: error {job['error']}")
    side = job["read"] if job["read"]["total_ios"] else job["write"]
    ranks = side["clat_ns"]["percentile"]
    return Load(side["iops"], side["bw_bytes"], ranks["50.000000"] / 1e6, ranks["99.000000"] / 1e6)
