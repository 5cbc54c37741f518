"""What an object store costs beside a local directory: the initial copy, lag under load, and reads cold and warm."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack

from benchmarks.bench import Bench
from benchmarks.peers import run, uri
from benchmarks.results import Contestant, Figure, Measured, Share, Table, clocked, contest
from benchmarks.site import Objects, Site, Target
from benchmarks.works.initial_copy import copy_once
from benchmarks.works.lag import probe_lag
from drengine.store.blobs.s3.cache import CACHE
from drengine.store.blobs.s3.options import ACK_LOCAL, ACK_OBJECT
from drengine.store.blobs.s3.spool import SPOOL
from tests.s3.server import S3Server, s3_server
from tests.s3.stores import place, use_keys

LOCAL = "local directory"
KINDS = {f"s3, ack = {ack}": ack for ack in (ACK_LOCAL, ACK_OBJECT)}
COLD, WARM = "s3, cold cache", "s3, warm cache"
REMARK = "The object store is SeaweedFS on the same two cores and the same disk, which it shares with target and agent."


def measure(bench: Bench) -> list[Table]:
    """Ours beside ours."""
    with s3_server() as server:
        use_keys()
        return [_copies(bench, server), _lags(bench, server), _reads(bench, server)]


def _objects(server: S3Server, name: str) -> Objects | None:
    """A new place for each run; none for the local directory."""
    return Objects(place(server.endpoint, server.bucket()), KINDS[name]) if name in KINDS else None


def _copies(bench: Bench, server: S3Server) -> Table:
    def copy(name: str) -> Measured:
        return copy_once(bench, compression="adaptive", objects=_objects(server, name))

    return Table(
        "object_store",
        f"Initial copy of {bench.image_bytes >> 20} MiB, segments as objects",
        "s",
        _contest(copy, bench.rounds),
        shares={name: Share(LOCAL, least) for name, least in zip(KINDS, (0.8, 0.5), strict=True)},
        baseline=LOCAL,
        remark=REMARK,
    )


def _lags(bench: Bench, server: S3Server) -> Table:
    seconds = 4.0 if bench.quick else 15.0

    def lag(name: str) -> Measured:
        return Measured(statistics.median(probe_lag(bench, seconds, objects=_objects(server, name))))

    return Table(
        "object_store_lag",
        "A 4 KiB write becomes a durable recovery point under load, segments as objects",
        "ms",
        _contest(lag, bench.rounds),
        shares={name: Share(LOCAL, least) for name, least in zip(KINDS, (0.8, 0.3), strict=True)},
        baseline=LOCAL,
        remark=f"Medians, as in `lag`. {REMARK}",
    )


def _contest(measured: Callable[[str], Measured], rounds: int) -> tuple[Figure, ...]:
    names = (LOCAL, *KINDS)
    return contest([Contestant(name, functools.partial(measured, name), ours=True) for name in names], rounds)


def _reads(bench: Bench, server: S3Server) -> Table:
    with ExitStack() as sites:
        contestants = []
        for name in (LOCAL, COLD, WARM):
            here = sites.enter_context(bench.site(bench.fresh(f"reads-{name.split()[-2]}")))
            objects = None if name == LOCAL else Objects(place(server.endpoint, server.bucket()), ACK_OBJECT)
            target = here.start_target(objects=objects)
            since_ns = time.time_ns()
            agent = here.start_agent(target, "source", {"disk": bench.image})
            target.wait_point("source", since_ns)
            here.stop(agent)
            read = functools.partial(_read_again, here, [target], is_cold=name == COLD)
            contestants.append(Contestant(name, read, ours=True))
        figures = contest(contestants, max(3, bench.rounds))
    return Table(
        "object_store_reads",
        f"Reading {bench.image_bytes >> 20} MiB of an export, segments as objects",
        "s",
        figures,
        shares={COLD: Share(LOCAL, 0.2), WARM: Share(LOCAL, 0.8)},
        baseline=LOCAL,
        remark=f"nbdcopy to nowhere, from a target that has just begun. Cold: no copy is on its disk. {REMARK}",
    )


def _read_again(here: Site, newest: list[Target], *, is_cold: bool) -> Measured:
    """Read all of the newest point from a target without anything in its memory."""
    target = newest[0] = here.kill_target(newest[0])
    if is_cold:
        for folder in (CACHE, SPOOL):  # as at another host: all that was acknowledged is in the object store
            for path in (target.store / folder).rglob("*.seg.*"):
                path.unlink(missing_ok=True)

    def copy() -> None:
        run("nbdcopy", uri(target.nbd, "source/disk@latest"), "null:")

    return clocked(copy)
