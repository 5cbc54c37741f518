"""Registries to test, in SQLite and in a real PostgreSQL."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drengine.failover.run import RunRecord
from drengine.failover.runbook.values import Mode
from tests.system.postgres import Server, initialise, skip_unless_installed


def run_named(id: str, *sources: str, options: Mapping[str, Any] | None = None) -> RunRecord:
    return RunRecord(
        id=id,
        mode=Mode.DRILL,
        runbook="shop",
        version="v",
        sources=sources,
        started_by="ann",
        created_ns=10**18,
        options=options or {},
    )


class RestartableServer(Server):
    """One that can be started again where it was."""

    def __init__(self, programs: Path, data: Path, sockets: Path, port: int) -> None:
        super().__init__(programs, data, sockets, port)
        self._where = (programs, data, sockets, port)

    def again(self) -> Server:
        return Server(*self._where)


@contextmanager
def postgres_server() -> Iterator[tuple[RestartableServer, str]]:
    """A server on a unix socket in a folder of its own, and its URL without a database's name."""
    programs = skip_unless_installed()
    folder = Path(tempfile.mkdtemp(prefix="drengine-registry-"))
    try:
        folder.chmod(0o755)
        places = [folder / name for name in ("data", "log", "sockets")]
        for place in places:
            place.mkdir()
            shutil.chown(place, "postgres", "postgres")
        data, log, sockets = places
        initialise(programs, data / "cluster", log / "wal")
        port = 5400 + secrets.randbelow(500)
        with RestartableServer(programs, data / "cluster", sockets, port) as server:
            yield server, f"postgresql://postgres@/{{}}?host={sockets}&port={port}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fresh_database(server: Server, url: str) -> str:
    name = f"r{secrets.token_hex(6)}"
    server.ask(f"CREATE DATABASE {name}")
    return url.format(name)
