"""SIGKILL the target under a recovered PostgreSQL, again and again: every commit that it acknowledged is there.

    python -m tests.soak.postgres --kills 50

A database lies on a promoted branch that the target serves: nbdfuse, a loop device, ext4. While pgbench and a ledger
write to it, the target is killed. It starts again, the same branch is attached again, PostgreSQL recovers, and all is
accounted for: each transaction of the ledger that was acknowledged is there and whole, none is half there, pgbench's
sums agree, and pg_amcheck finds nothing. What was acknowledged is recorded outside the branch, synced.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.devices import attached, mounted
from benchmarks.postgres import Cluster
from benchmarks.site import Site, site
from benchmarks.works.export_io import SOURCE, replicate_image
from benchmarks.works.pgbench import make_disk
from tests.system.disks import run
from tests.system.live_postgres import SUMS
from tests.system.postgres import USER, Ledger, Server, as_postgres, rows, skip_unless_installed

DISK_BYTES = 256 << 20
PORT = 5470


class PostgresSoak:
    """One campaign in one folder.

    Attributes:
        kills: of the target, so far.
        found: transactions of the ledger that were there when it was looked at last.
        peaks: the largest resident memory of each target that has ended, in bytes.
    """

    def __init__(self, folder: Path, here: Site, seed: int) -> None:
        self._folder, self._site = folder, here
        self._random = random.Random(seed)
        self._programs = skip_unless_installed()
        self._sockets = folder / "sockets"
        self._record = folder / "acknowledged"
        self._sent = 0
        self.kills = 0
        self.found = 0
        self._begin()

    def kill(self) -> None:
        """Load the database, kill the target, and look at what is left."""
        with self._database() as server:
            ledger = Ledger(server, first=self.found + 1, record=self._record)
            load = self._pgbench()
            try:
                ledger.wait_for(self._random.randrange(3, 90))
                time.sleep(self._random.uniform(0.0, 0.1))  # anywhere between two flushes
                self._target = self._site.kill_target(self._target)
            finally:
                server.kill()
                ledger.close()
                load.kill()
                load.wait()
        self.kills += 1
        self._sent = self.found + len(ledger.sent_ns)
        with self._database() as server:
            self._check(server)

    def _begin(self) -> None:
        image = self._folder / "disk.img"

        def fill(cluster: Cluster) -> None:
            cluster.pgbench("-i", "-q", "-s", "1")
            cluster.ask(Ledger.TABLES)
            cluster.ask("CREATE EXTENSION amcheck")

        make_disk(image, DISK_BYTES, self._folder, fill)
        self._target = replicate_image(self._site, image)
        image.unlink()
        self._uri = self._site.promote(self._target, SOURCE)

    @contextlib.contextmanager
    def _database(self) -> Iterator[Server]:
        """The branch, attached, mounted, and PostgreSQL on it after its crash recovery."""
        with (
            attached(self._uri, self._folder / "disk") as file,
            mounted(file, self._folder / "mount") as top,
            Server(self._programs, top / "pg", self._sockets, PORT) as server,
        ):
            yield server

    def _pgbench(self) -> subprocess.Popen[bytes]:
        place = ("-h", str(self._sockets), "-p", str(PORT), "-U", USER)
        command = ["pgbench", *place, "-n", "-c", "2", "-T", "86400", "postgres"]
        with (self._folder / "pgbench.log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **as_postgres())

    def _check(self, server: Server) -> None:
        acknowledged = max(map(int, self._record.read_text().split()), default=0)
        self.found = rows(server)
        assert acknowledged <= self.found <= self._sent, (
            f"kill {self.kills}: {acknowledged} were acknowledged, {self._sent} sent, {self.found} are there"
        )
        assert server.ask(SUMS) in ("t", ""), f"kill {self.kills}: a transaction of pgbench is half there"
        run(
            *(self._programs / "pg_amcheck", "-h", self._sockets, "-p", str(PORT), "-U", USER),
            *("--heapallindexed", "--parent-check", "--no-strict-names", "-d", "postgres"),
        )


@contextlib.contextmanager
def postgres_soak(seed: int, peaks: list[int]) -> Iterator[PostgresSoak]:
    """A campaign in a folder of its own, which is kept when it fails; `peaks`: the memory of each target that ended."""
    folder = Path(tempfile.mkdtemp(prefix="drengine-pgkill-"))  # short, for sockets; open, for PostgreSQL's user
    folder.chmod(0o755)
    with site(folder, peaks=peaks) as here:
        yield PostgresSoak(folder, here, seed)
    shutil.rmtree(folder)


def main() -> int:
    """Run the campaign; an assertion says which promise was broken, and the seed repeats it."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.postgres")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--kills", type=int, default=50)
    options = parser.parse_args()
    print(f"seed {options.seed}: {options.kills} kills", flush=True)
    begun, peaks = time.monotonic(), list[int]()
    with postgres_soak(options.seed, peaks) as soak:
        for _ in range(options.kills):
            soak.kill()
            print(f"{time.monotonic() - begun:7.1f} s  {soak.kills} kills, {soak.found} transactions", flush=True)
    print(
        f"{options.kills} kills: each of {soak.found} transactions whole, none of those acknowledged is missing, "
        f"pg_amcheck clean; the target's peak resident memory {max(peaks) >> 20} MiB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
