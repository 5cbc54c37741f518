"""A real PostgreSQL and a ledger in it whose every row can be accounted for."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from benchmarks.devices import until
from tests.system.disks import run

USER = "postgres"
SETTINGS = ("listen_addresses=", "shared_buffers=16MB", "max_connections=10", "autovacuum=off")


def skip_unless_installed() -> Path:
    """The programs' folder."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found or shutil.which("psql") is None:
        pytest.skip("PostgreSQL is not installed")
    try:
        pwd.getpwnam(USER)
    except KeyError:
        pytest.skip(f"there is no user {USER}")
    return found[-1].parent


def as_postgres() -> dict[str, Any]:
    """PostgreSQL refuses to run as root."""
    user = pwd.getpwnam(USER)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": "/", "umask": 0o077}


def initialise(programs: Path, data: Path, log: Path) -> None:
    """A cluster whose write-ahead log lies on another disk, found by a relative link."""
    for folder in (data.parent, log.parent):
        shutil.chown(folder, USER, USER)
    done = subprocess.run(
        [
            *(str(programs / "initdb"), "--pgdata", str(data), "--waldir", str(log)),
            *("--wal-segsize=1", "--data-checksums", "--auth=trust", "--locale=C", "--encoding=UTF8", "--no-sync"),
        ],
        capture_output=True,
        text=True,
        check=False,
        **as_postgres(),
    )
    assert done.returncode == 0, done.stderr
    (data / "pg_wal").unlink()
    (data / "pg_wal").symlink_to(os.path.relpath(log, data))


class Server:
    """`postgres` on a unix socket, until it is stopped or killed."""

    def __init__(self, programs: Path, data: Path, sockets: Path, port: int, *, settings: tuple[str, ...] = ()) -> None:
        self._sockets, self._port = sockets, port
        options = [part for each in (*SETTINGS, *settings) for part in ("-c", each)]
        self._said = sockets / f"{port}.log"
        with self._said.open("ab") as said:
            self.process = subprocess.Popen(
                [programs / "postgres", "-D", data, "-k", sockets, "-p", str(port), *options],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                **as_postgres(),
            )

    def __enter__(self) -> Self:
        try:
            until(self._answers, "PostgreSQL answers")
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def psql(self) -> list[str]:
        return ["psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", str(self._sockets), "-p", str(self._port), "-U", USER]

    def ask(self, statement: str) -> str:
        return run(*self.psql(), "-d", "postgres", "-c", statement).strip()

    def load(self, database: str, statements: str) -> None:
        """Have a database hold what a dump says."""
        subprocess.run([*self.psql(), "-d", database], input=statements, text=True, capture_output=True, check=True)

    def kill(self) -> None:
        """As a power cut would: its children notice and are gone before this returns."""
        # ps ends with 1 when there are none: the server may be ending by itself, its disk being gone
        listing = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=False
        )
        children = [int(pid) for pid in re.findall(r"\d+", listing.stdout)]
        if self.process.poll() is None:
            self.process.kill()
        for pid in children:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()
        until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in children), "PostgreSQL's processes ended")

    def _answers(self) -> bool:
        assert self.process.poll() is None, self._said.read_text()[-2000:]
        asked = subprocess.run([*self.psql(), "-c", "SELECT 1"], capture_output=True, check=False)
        return asked.returncode == 0


class Ledger:
    """Transaction after transaction, each over three tables; when each was sent, and when it was committed."""

    TABLES = (
        "CREATE TABLE debit (number bigint PRIMARY KEY, detail text NOT NULL);"
        "CREATE TABLE credit (number bigint PRIMARY KEY, detail text NOT NULL);"
        "CREATE TABLE account (total numeric NOT NULL); INSERT INTO account VALUES (0);"
    )
    CHECKPOINT_EVERY = 40
    """Pages reach the data disk and the log is recycled while writes go on, so the order across disks matters."""

    def __init__(
        self, server: Server, *, pause_seconds: float = 0.0, first: int = 1, record: Path | None = None
    ) -> None:
        """`pause_seconds`: between two transactions; `first`: the number of the first; `record`: a file in which each
        number is durable as soon as it was committed.
        """
        self._pause_seconds = pause_seconds
        self._first = first
        self._record = None if record is None else record.open("ab", buffering=0)
        self.sent_ns: list[int] = []
        self.committed_ns: list[int] = []
        self._stopping = False
        self._process = subprocess.Popen(
            [*server.psql(), "-d", "postgres"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        assert self._process.stdin and self._process.stdout
        while not self._stopping:
            number = self._first + len(self.sent_ns)
            row = f"VALUES ({number}, repeat(md5('{number}'), 20))"
            self.sent_ns.append(time.time_ns())
            try:
                self._process.stdin.write(
                    f"BEGIN; INSERT INTO debit {row}; UPDATE account SET total = total + {number}; "
                    f"INSERT INTO credit {row}; COMMIT; SELECT {number};\n"
                    + ("CHECKPOINT;\n" if number % self.CHECKPOINT_EVERY == 0 else "")
                )
                self._process.stdin.flush()
                if self._process.stdout.readline() != f"{number}\n":
                    return
            except OSError:
                return
            self.committed_ns.append(time.time_ns())
            if self._record:
                self._record.write(b"%d\n" % number)
                os.fdatasync(self._record.fileno())
            time.sleep(self._pause_seconds)

    def wait_for(self, more: int) -> None:
        wanted = len(self.committed_ns) + more
        until(lambda: len(self.committed_ns) >= wanted or not self._thread.is_alive(), "the ledger grows")
        assert len(self.committed_ns) >= wanted, "the ledger's session ended"

    def close(self) -> None:
        self._stopping = True
        self._process.kill()
        self._process.wait()
        self._thread.join()
        for pipe in (self._process.stdin, self._process.stdout, *([self._record] if self._record else [])):
            try:
                assert pipe
                pipe.close()
            except OSError:  # what it had not taken can't be sent any more
                continue


def rows(server: Server) -> int:
    """How many transactions there are, after checking that they are the first ones, each whole."""
    numbers = "coalesce(max(number), 0), count(*), coalesce(sum(number), 0)"
    intact = "bool_and(detail = repeat(md5(number::text), 20))"
    debit = server.ask(f"SELECT {numbers}, {intact} FROM debit")
    credit = server.ask(f"SELECT {numbers}, {intact} FROM credit")
    total = server.ask("SELECT total FROM account")
    last, count, summed, whole = debit.split("|")
    assert debit == credit, "a transaction is half there"
    assert last == count, f"{last} is there, but only {count} rows are"
    assert summed == total
    assert whole in ("t", "")
    return int(count)
