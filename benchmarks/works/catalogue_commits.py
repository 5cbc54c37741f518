"""Commits of a hundred sources at once: what the catalogue takes, in SQLite and in PostgreSQL, beside pgbench."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.bench import Bench
from benchmarks.postgres import PORT, USER, Cluster
from benchmarks.results import Contestant, Measured, Table, contest
from drengine.store.catalogue.interface import Catalogue
from drengine.store.catalogue.opening import create_catalogue, finish_catalogue, open_catalogue
from drengine.store.catalogue.rows import OPEN, BranchRow, PointRow, SegmentRow, SourceRow
from drengine.store.identity import StoreFile
from drengine.store.names import NOTES, SEGMENTS

SOURCES = 100
GEOMETRY = b"g" * 80
REMARK = (
    "One process with a thread and a connection for each source, as a target has them; a commit is the transaction in "
    "which a branch moves and a point appears: two round trips. pgbench: its simple update, in C, with as many clients."
)


def measure(bench: Bench) -> list[Table]:
    """As fast as they go."""
    seconds = 2 if bench.quick else 10
    with ExitStack() as stack:
        cluster = Cluster(*(stack.enter_context(_open_folder(bench.folder.parent)) for _ in range(2)))
        cluster.create()
        stack.enter_context(cluster.running(f"max_connections={2 * SOURCES + 20}", "shared_buffers=128MB"))
        cluster.pgbench("-i", "-q", "-s", "10")
        clients = ("-N", "-c", str(SOURCES), "-j", "2", "-M", "prepared", "-T", str(seconds))
        contestants = [
            Contestant(name, partial(_commits, bench, cluster if name == "PostgreSQL" else None, seconds), ours=True)
            for name in ("SQLite", "PostgreSQL")
        ]
        peer = Contestant("pgbench", lambda: Measured(cluster.pgbench(*clients)))
        figures = contest([*contestants, peer], bench.rounds)
    title = f"Commits of {SOURCES} sources at once"
    return [Table("catalogue_commits", title, "/s", figures, True, baseline=peer.name, remark=REMARK)]


@contextmanager
def _open_folder(parent: Path) -> Iterator[Path]:
    """A folder on the measured disk that PostgreSQL's user reaches, too."""
    with TemporaryDirectory(dir=parent) as name:
        Path(name).chmod(0o755)
        yield Path(name)


def _commits(bench: Bench, cluster: Cluster | None, seconds: float) -> Measured:
    with ExitStack() as stack:
        url = ""
        if cluster:
            name = f"c{time.monotonic_ns()}"
            cluster.ask(f"CREATE DATABASE {name}")
            url = f"postgresql://{USER}@/{name}?host={cluster.sockets}&port={PORT}"
        catalogue = stack.enter_context(_catalogue(bench.fresh("catalogue"), url))
        names = [f"source-{number:03}" for number in range(SOURCES)]
        with catalogue.transaction():
            for each in names:
                catalogue.put(SourceRow(each, 1, 1), _branch(each, 0))
        writers = [catalogue.another() for _ in names]
        for writer in writers:
            stack.callback(writer.close)
        for each, writer in zip(names, writers, strict=True):
            _commit(writer, each, 1)
        done = [1] * SOURCES
        before, client = _server_seconds(), time.process_time()
        until = time.monotonic() + seconds

        def work(number: int) -> None:
            while time.monotonic() < until:
                done[number] += 1
                _commit(writers[number], names[number], done[number])

        threads = [threading.Thread(target=work, args=(number,)) for number in range(SOURCES)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        count = sum(done) - SOURCES
        cost = (time.process_time() - client) / count * 1e6
        server = (_server_seconds() - before) / count * 1e6
        return Measured(count / seconds, note=f"CPU of a commit: {cost:.0f} us, of the server {server:.0f} us")


@contextmanager
def _catalogue(folder: Path, url: str) -> Iterator[Catalogue]:
    for name in (SEGMENTS, NOTES):
        (folder / name).mkdir()
    file = StoreFile(bytes(16), catalogue=url)
    create_catalogue(folder, file)
    finish_catalogue(file)
    catalogue = open_catalogue(folder, file)
    try:
        yield catalogue
    finally:
        catalogue.close()


def _commit(writer: Catalogue, source: str, number: int) -> None:
    with writer.transaction(source):
        writer.data_version()
        writer.put(
            _branch(source, number),
            SegmentRow(source, 1, 1, 1, OPEN, 1, number, 4096 * number, 4096 * number, 4096 * number, 0),
            PointRow(source, 1, number, 10**18 + number, 10**18, "write-order", "", GEOMETRY, 0, 0, 0, ""),
        )


def _branch(source: str, durable: int) -> BranchRow:
    return BranchRow(source, 1, 0, 0, 1, "trunk", "", 0, 1, 0, durable, bytes(16), durable * 4096, GEOMETRY)


def _server_seconds() -> float:
    """CPU time of all processes of PostgreSQL there are."""
    ticks = 0
    for place in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            head, _, rest = place.read_text(encoding="utf-8", errors="replace").rpartition(")")
            if head.endswith("(postgres"):
                ticks += sum(map(int, rest.split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")
