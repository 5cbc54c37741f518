"""PostgreSQL on a promoted branch beside the same PostgreSQL on qemu-nbd: the first minutes of a recovered database.

Both disks come to the file system by nbdfuse and a loop device. Each run begins with a fresh mount, so that no page is
cached above the export. Root only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.bench import GIB, MIB, Bench
from benchmarks.devices import attached, mounted
from benchmarks.peers import qemu_nbd, run, serving, uri
from benchmarks.postgres import USER, Cluster, programs
from benchmarks.results import Contestant, Measured, Table, contest
from benchmarks.works.export_io import promote_image

OURS, PEER = "drengine, promoted branch", "qemu-nbd, raw file"
LOADS = {"pgbench_reads": ("pgbench, read-only", ("-S",)), "pgbench": ("pgbench, its default transactions", ())}
CLIENTS = ("-c", "4", "-j", "2")


def measure(bench: Bench) -> list[Table]:
    """One table for each kind of transactions."""
    scale, seconds, size = (5, 5, 256 * MIB) if bench.quick else (50, 30, 2 * GIB)
    folder, image = bench.fresh("pgbench"), bench.folder / "pgbench.img"
    with cluster_folder() as sockets:
        make_disk(image, size, sockets, lambda cluster: cluster.pgbench("-i", "-q", "-s", str(scale)))
        raw, socket = folder / "raw.img", folder / "raw.sock"
        shutil.copyfile(image, raw)
        with bench.site(folder) as here, serving(socket, *qemu_nbd(socket, raw)):
            addresses = {OURS: promote_image(here, image), PEER: uri(socket)}
            image.unlink()

            def once(address: str, options: tuple[str, ...]) -> Measured:
                with disk(address, sockets) as cluster, cluster.running():
                    return Measured(cluster.pgbench(*CLIENTS, "-T", str(seconds), *options))

            return [
                Table(
                    name,
                    title,
                    "transactions/s",
                    contest(
                        [
                            Contestant(who, partial(once, addresses[who], options), ours=who == OURS)
                            for who in (OURS, PEER)
                        ],
                        bench.rounds,
                    ),
                    higher_is_better=True,
                    baseline=PEER,
                    remark=f"Scale {scale}, 4 clients, {seconds} s, 128 MiB of shared buffers; ext4 on a loop device "
                    "on nbdfuse, mounted anew for each run: what is read once is in the page cache above both.",
                )
                for name, (title, options) in LOADS.items()
            ]


@contextlib.contextmanager
def cluster_folder() -> Iterator[Path]:
    """A folder with a short name, for sockets, that PostgreSQL's user may enter, and mount points below it."""
    if os.geteuid() != 0:
        raise RuntimeError("needs root")
    programs()
    with tempfile.TemporaryDirectory(prefix="drengine-pg-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def make_disk(image: Path, size: int, folder: Path, fill: Callable[[Cluster], object], stop: str = "fast") -> None:
    """An ext4 disk with a cluster on it that `fill` has filled, quickly: it is synced at the end only."""
    with image.open("wb") as file:
        file.truncate(size)
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
    with mounted(image, folder / "made") as top:
        cluster = Cluster(top, sockets_of(folder))
        cluster.create()
        with cluster.running("fsync=off", "max_wal_size=64GB", "checkpoint_timeout=1d", stop=stop):
            fill(cluster)
    run("sync", image)


@contextlib.contextmanager
def disk(address: str, folder: Path) -> Iterator[Cluster]:
    """The cluster on the disk at an NBD address, mounted; it does not run yet."""
    with attached(address, folder / "disk") as file, mounted(file, folder / "mount") as top:
        yield Cluster(top, sockets_of(folder))


def sockets_of(folder: Path) -> Path:
    """Where the server's socket and log lie, on the machine's own disk."""
    sockets = folder / "sockets"
    sockets.mkdir(exist_ok=True)
    shutil.chown(sockets, USER, USER)
    return sockets
