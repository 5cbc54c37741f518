"""One PostgreSQL server for the tests that need a real one: on a unix socket and a port of loopback, in a folder of its
own, and as many databases as they like.

Tests get one for all of them by the fixture `postgres`, and ask it for a `fresh_database()`; those that harm the server
make one of their own.
"""

from __future__ import annotations

import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import pytest

from tests.memory import scratch_folder
from tests.system.postgres import Server, initialise, skip_unless_installed

CONNECTIONS_MAX = 200


class Postgres:
    """A cluster, whose server is started, stopped, killed and started again.

    Attributes:
        folder: its files; `data` is the cluster's directory.
        port: of the server, on its unix socket and on the addresses that it listens to.
        server: the one that runs, or that ran last.
    """

    def __init__(self, *settings: str, listen: str = "127.0.0.1") -> None:
        """`settings`: more of them, as `name=value`; `listen`: addresses beside the unix socket."""
        self._programs = skip_unless_installed()
        self._settings = (f"listen_addresses={listen}", f"max_connections={CONNECTIONS_MAX}", *settings)
        self.folder = scratch_folder("drengine-postgres-")
        self.folder.chmod(0o755)
        places = [self.folder / name for name in ("data", "log", "sockets")]
        for place in places:
            place.mkdir()
            shutil.chown(place, "postgres", "postgres")
        data, log, self.sockets = places
        self.data = data / "cluster"
        self.port = _free_port()
        initialise(self._programs, self.data, log / "wal")
        self.start()

    def start(self) -> Server:
        """Start it (again), and return when it answers."""
        self.server = Server(self._programs, self.data, self.sockets, self.port, settings=self._settings)
        return self.server.__enter__()

    def kill(self) -> None:
        """As a power cut would."""
        self.server.kill()

    def fresh_database(self) -> str:
        """A new empty database; its URL, over the unix socket."""
        return self.url(self.database())

    def database(self) -> str:
        """A new empty database; its name."""
        name = f"r{secrets.token_hex(6)}"
        self.server.ask(f"CREATE DATABASE {name}")
        return name

    def url(self, database: str) -> str:
        """Of a database, over the unix socket."""
        return f"postgresql://postgres@/{database}?host={self.sockets}&port={self.port}"

    def tcp_url(self, database: str, port: int = 0) -> str:
        """Of a database, over loopback; `port`: of a proxy before it."""
        return f"postgresql://postgres@127.0.0.1:{port or self.port}/{database}?sslmode=disable&gssencmode=disable"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()  # which takes no checkpoint of what nobody wants any more
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A server for the length of the block."""
    with Postgres() as started:
        yield started


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all tests of the session that leave it as it is."""
    with postgres_server() as started:
        yield started


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
