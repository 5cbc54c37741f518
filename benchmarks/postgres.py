"""A PostgreSQL cluster on a mounted file system: made, started, loaded by pgbench, stopped or crashed."""

from __future__ import annotations

import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import NotInstalledError

USER = "postgres"
PORT = 5460
WAIT_SECONDS = "600"


def programs() -> Path:
    """The folder of PostgreSQL's programs.

    Raises:
        NotInstalledError: there is none, or the user that it runs as is missing.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found or USER not in {each.pw_name for each in pwd.getpwall()}:
        raise NotInstalledError(f"PostgreSQL, or its user {USER}, is not installed")
    return found[-1].parent


@dataclass(frozen=True)
class Cluster:
    """A cluster in `top`/pg, whose sockets and log lie in a folder beside the disk.

    Attributes:
        top: where the file system is mounted.
        sockets: a folder on the machine's own disk that its user may write.
    """

    top: Path
    sockets: Path

    def create(self) -> None:
        """Make an empty cluster."""
        for folder in (self.top, self.sockets):
            shutil.chown(folder, USER, USER)
        self._run("initdb", "-D", self._data, "-A", "trust", "--locale=C", "--encoding=UTF8", "--data-checksums")

    @contextmanager
    def running(self, *settings: str, stop: str = "fast") -> Iterator[None]:
        """Run it, with `settings` such as ``fsync=off``, from the moment it takes connections; crash recovery comes
        first. `stop`: ``fast`` with a checkpoint, ``immediate`` as a crash does.
        """
        options = " ".join(f"-c {each}" for each in ("listen_addresses=", *settings))
        options = f"-k {self.sockets} -p {PORT} {options}"
        self._run("pg_ctl", "start", "-D", self._data, "-w", "-t", WAIT_SECONDS, "-l", self.log, "-o", options)
        try:
            yield
        finally:
            self._run("pg_ctl", "stop", "-D", self._data, "-w", "-t", WAIT_SECONDS, "-m", stop)

    def ask(self, statement: str) -> str:
        """The first value that a statement returns."""
        return self._run("psql", *self._place, "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", statement, USER).strip()

    def pgbench(self, *options: str) -> float:
        """Transactions a second; 0 where pgbench only fills its tables."""
        said = self._run("pgbench", *self._place, *options, USER)
        found = re.search(r"^tps = ([\d.]+)", said, re.MULTILINE)
        return float(found.group(1)) if found else 0.0

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.sockets / "postgres.log"

    @property
    def _data(self) -> Path:
        return self.top / "pg"

    @property
    def _place(self) -> tuple[str, ...]:
        return ("-h", str(self.sockets), "-p", str(PORT), "-U", USER)

    def _run(self, program: str, *arguments: str | Path) -> str:
        """As its user, since PostgreSQL refuses to run as root."""
        user = pwd.getpwnam(USER)
        as_user: dict[str, Any] = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": "/"}
        command = [programs() / program, *arguments]
        # A daemon keeps its standard streams: of those that pg_ctl starts, nothing may be waited for.
        quiet = program == "pg_ctl"
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if quiet else subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else subprocess.PIPE,
            text=True,
            check=False,
            **as_user,
        )
        if done.returncode:
            said = self.log.read_text(errors="replace") if quiet and self.log.exists() else done.stderr
            raise RuntimeError(f"{program} ended with {done.returncode}: {(said or '')[-400:]}")
        return done.stdout or ""
