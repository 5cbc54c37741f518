"""What encryption at rest costs: the initial copy, reads of an export, and lag under load, beside a store in clear."""

from __future__ import annotations

import functools
import statistics
import time
from contextlib import ExitStack

from benchmarks.bench import Bench
from benchmarks.peers import run, uri
from benchmarks.results import Contestant, Measured, Share, Table, clocked, contest
from benchmarks.site import Target
from benchmarks.works.initial_copy import copy_once
from benchmarks.works.lag import probe_lag

CLEAR, ENCRYPTED = "in clear", "encrypted"
RAW = ", uncompressed"
LEAST = 0.9


def measure(bench: Bench) -> list[Table]:
    """Ours beside ours."""
    return [_copies(bench), _reads(bench), _lags(bench)]


def _copies(bench: Bench) -> Table:
    figures = contest(
        [
            Contestant(
                f"{CLEAR if not encrypted else ENCRYPTED}{suffix}",
                functools.partial(copy_once, bench, compression=compression, encrypted=encrypted),
                ours=True,
            )
            for compression, suffix in (("adaptive", ""), ("none", RAW))
            for encrypted in (False, True)
        ],
        bench.rounds,
    )
    return Table(
        "encryption",
        f"Initial copy of {bench.image_bytes >> 20} MiB, encrypted at rest",
        "s",
        figures,
        shares={ENCRYPTED: Share(CLEAR, LEAST), f"{ENCRYPTED}{RAW}": Share(f"{CLEAR}{RAW}", LEAST)},
        baseline=CLEAR,
        remark="AES-256-GCM for each frame, an HMAC for each record and for the catalogue's rows.",
    )


def _reads(bench: Bench) -> Table:
    with ExitStack() as sites:
        contestants = []
        for name in (CLEAR, ENCRYPTED):
            here = sites.enter_context(bench.site(bench.fresh(f"reads-{name.split()[-1]}")))
            target = here.start_target(encrypted=name == ENCRYPTED)
            since_ns = time.time_ns()
            agent = here.start_agent(target, "source", {"disk": bench.image})
            target.wait_point("source", since_ns)
            here.stop(agent)
            contestants.append(Contestant(name, functools.partial(_read, target), ours=True))
        figures = contest(contestants, max(3, bench.rounds))
    return Table(
        "encryption_reads",
        f"Reading {bench.image_bytes >> 20} MiB of an export, encrypted at rest",
        "s",
        figures,
        shares={ENCRYPTED: Share(CLEAR, LEAST)},
        baseline=CLEAR,
        remark="nbdcopy to nowhere; segments in the page cache.",
    )


def _read(target: Target) -> Measured:
    def copy() -> None:
        run("nbdcopy", uri(target.nbd, "source/disk@latest"), "null:")

    return clocked(copy)


def _lags(bench: Bench) -> Table:
    seconds = 4.0 if bench.quick else 15.0

    def lag(name: str) -> Measured:
        return Measured(statistics.median(probe_lag(bench, seconds, encrypted=name == ENCRYPTED)))

    figures = contest(
        [Contestant(name, functools.partial(lag, name), ours=True) for name in (CLEAR, ENCRYPTED)], bench.rounds
    )
    return Table(
        "encryption_lag",
        "A 4 KiB write becomes a durable recovery point under load, encrypted at rest",
        "ms",
        figures,
        shares={ENCRYPTED: Share(CLEAR, LEAST)},
        baseline=CLEAR,
        remark="Medians, as in `lag`.",
    )
