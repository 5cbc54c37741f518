"""A file served over a unix socket, and a client that can misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from drengine.nbd.export import ExportProvider
from drengine.nbd.file_export import FileProvider
from drengine.nbd.limits import NbdLimits
from drengine.nbd.server import NbdServer
from tests.nbd import wire as nbd

DISK_BYTES = 4 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"")
    with path.open("r+b") as file:
        file.truncate(DISK_BYTES)
    return path


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until `condition` holds; the test's own time limit bounds it."""
    while not condition():  # noqa: ASYNC110  the server offers no event for what only tests wait for
        await asyncio.sleep(0)


Serve = Callable[..., Awaitable[tuple[NbdServer, str]]]


@pytest.fixture
async def serve(tmp_path: Path, disk: Path) -> AsyncIterator[Serve]:
    """Starts a server on a unix socket; by default it serves `disk`."""
    servers: list[NbdServer] = []

    async def start(
        provider: ExportProvider | None = None, *, limits: NbdLimits | None = None
    ) -> tuple[NbdServer, str]:
        server = NbdServer(provider or FileProvider({"disk": disk}), limits=limits)
        servers.append(server)
        return server, str(await server.start_unix(tmp_path / f"{len(servers)}.sock"))

    yield start
    for server in servers:
        await server.close(0.5)


@dataclass
class Client:
    """Speaks NBD bytes; reads answers as they come."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    replies: nbd.ReplyReader = field(default_factory=nbd.ReplyReader)

    @staticmethod
    async def connect(path: str) -> Client:
        client = Client(*await asyncio.open_unix_connection(path))
        assert (await client.reader.readexactly(nbd.GREETING_BYTES))[:8] == b"NBDMAGIC"
        return client

    async def go(self, name: str = "disk") -> None:
        self.writer.write(nbd.client_flags() + nbd.option(nbd.STRUCTURED))
        assert (await self.option()).kind == nbd.ACK
        self.writer.write(nbd.option(nbd.SET_META, nbd.contexts(name, "base:allocation")))
        while (await self.option()).kind != nbd.ACK:
            pass
        self.writer.write(nbd.option(nbd.GO, nbd.named(name)))
        while (reply := await self.option()).kind != nbd.ACK:
            assert reply.kind == nbd.REP_INFO, reply

    async def option(self) -> nbd.Option:
        header = await self.reader.readexactly(20)
        return nbd.option_replies(header + await self.reader.readexactly(int.from_bytes(header[16:])))[0]

    def ask(self, command: int, cookie: int, *args: int, data: bytes = b"", flags: int = 0) -> None:
        offset, length = args or (0, 0)
        self.writer.write(nbd.request(command, cookie, offset, length, data, flags=flags))

    async def answer(self, cookie: int) -> nbd.Answer:
        while cookie not in self.replies.answers or not self.replies.answers[cookie].done:
            data = await self.reader.read(1 << 16)
            if not data:
                raise ConnectionResetError("the server closed the connection")
            self.replies.feed(data)
        return self.replies.answers.pop(cookie)

    async def call(self, command: int, *args: int, data: bytes = b"", flags: int = 0) -> nbd.Answer:
        self.ask(command, 1, *args, data=data, flags=flags)
        return await self.answer(1)

    async def ended(self) -> bytes:
        """Wait until the server closes; what it said until then."""
        try:
            return await self.reader.read()
        except ConnectionResetError:
            return b""

    def close(self) -> None:
        self.writer.close()
