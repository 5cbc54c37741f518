"""PostgreSQL's crash recovery on a promoted branch: the longest wait of a recovered database. Root only.

Beside it: the same disk on qemu-nbd by the same way (nbdfuse, loop device, ext4), and as a local file on a loop device.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import GIB, MIB, Bench
from benchmarks.devices import mounted
from benchmarks.peers import qemu_nbd, serving, uri
from benchmarks.postgres import Cluster
from benchmarks.results import Contestant, Measured, Table, contest
from benchmarks.works.export_io import promote_image
from benchmarks.works.pgbench import cluster_folder, disk, make_disk, sockets_of

OURS, PEER, LOCAL = "drengine, promoted branch", "qemu-nbd, raw file", "a local file on a loop device"
ROWS_OF_A_BRANCH = 100_000  # in pgbench_accounts, for each unit of scale
CHANGE = (
    "UPDATE pgbench_accounts SET abalance = abalance + 1 "
    "WHERE aid IN (SELECT 1 + (random() * {rows})::int FROM generate_series(1, 2000))"
)
PENDING = "SELECT pg_current_wal_lsn() - redo_lsn FROM pg_control_checkpoint()"


def measure(bench: Bench) -> list[Table]:
    """Seconds from the server's start until it takes connections."""
    scale, wal, size = (5, 64 * MIB, 384 * MIB) if bench.quick else (100, GIB, 4 * GIB)
    image = bench.folder / "crashed.img"

    def fill(cluster: Cluster) -> None:
        """Rows changed at random places, until so much log lies behind the last checkpoint."""
        cluster.pgbench("-i", "-q", "-s", str(scale))
        cluster.ask("CHECKPOINT")
        while float(cluster.ask(PENDING)) < wal:
            cluster.ask(CHANGE.format(rows=scale * ROWS_OF_A_BRANCH))

    with cluster_folder() as folder:
        make_disk(image, size, folder, fill, stop="immediate")
        figures = contest(
            [
                Contestant(OURS, lambda: _branch(bench, image, folder), ours=True),
                Contestant(PEER, lambda: _peer(bench, image, folder)),
                Contestant(LOCAL, lambda: _local(bench, image, folder)),
            ],
            bench.rounds,
        )
    image.unlink()
    return [
        Table(
            "pg_recovery",
            f"PostgreSQL recovers from a crash with {wal / MIB:,.0f} MiB of log",
            "s",
            figures,
            baseline=PEER,
            remark="From the start of the server until it takes connections, with the checkpoint at the end of it. "
            "Each run has a replica, or a copy, of its own, just made.",
        )
    ]


def _recover(cluster: Cluster) -> Measured:
    cluster.log.unlink(missing_ok=True)
    begun = time.perf_counter()
    with cluster.running():
        seconds = time.perf_counter() - begun
        said = cluster.log.read_text()
    redone = re.search(r"redo done .* elapsed: (.*)", said)
    if redone is None:
        raise RuntimeError(f"there was nothing to recover: {said[-300:]}")
    return Measured(seconds, None, f"log applied in {redone[1]}")


def _branch(bench: Bench, image: Path, folder: Path) -> Measured:
    with bench.site(bench.fresh("recovered")) as here, disk(promote_image(here, image), folder) as cluster:
        return _recover(cluster)


def _peer(bench: Bench, image: Path, folder: Path) -> Measured:
    place = bench.fresh("peer")
    socket = place / "peer.sock"
    with (
        _copy(image, place) as raw,
        serving(socket, *qemu_nbd(socket, raw)),
        disk(uri(socket), folder) as cluster,
    ):
        return _recover(cluster)


def _local(bench: Bench, image: Path, folder: Path) -> Measured:
    with _copy(image, bench.fresh("peer")) as raw, mounted(raw, folder / "mount") as top:
        return _recover(Cluster(top, sockets_of(folder)))


@contextlib.contextmanager
def _copy(image: Path, place: Path) -> Iterator[Path]:
    raw = place / "raw.img"
    shutil.copyfile(image, raw)
    yield raw
    raw.unlink()
