"""Sessions: how many agents a second are let in, whose identities are required, beside bare handshakes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.results import Contestant, Measured, Table, contest
from benchmarks.site import free_port, wait_for
from drengine.identity.authority import Authority
from drengine.identity.keys import new_key, write_key
from drengine.identity.names import Identity, Role
from drengine.model.clock import SystemClock
from drengine.transport.endpoints import connect
from drengine.transport.files import TlsFiles
from drengine.transport.framed import FramedStream
from drengine.transport.networks import DataNetworks
from drengine.transport.tls import client_context
from drengine_agent.ship.session import Session, hello_for

SOURCE = "shop"
AT_ONCE = 8
HOST = "127.0.0.1"
BARE = """
import asyncio, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.minimum_version = ssl.TLSVersion.TLSv1_3
context.load_cert_chain(sys.argv[2], sys.argv[3])
context.load_verify_locations(sys.argv[4])
context.verify_mode = ssl.CERT_REQUIRED
async def answer(reader, writer):
    writer.write(await reader.readexactly(1))
    writer.close()
async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", int(sys.argv[1]), ssl=context)
    await server.serve_forever()
asyncio.run(main())
"""


def measure(bench: Bench) -> list[Table]:
    """Open, be welcomed, leave; one source, since each has one session: so one after another, then several sources."""
    count = 30 if bench.quick else 300
    files = _certificates(bench.fresh("sessions-ca"), 1 + AT_ONCE)
    contestants = [
        Contestant("mutual TLS, identities required", partial(_ours, bench, files, count), ours=True),
        Contestant("asyncio's mutual TLS, one byte there and back", partial(_bare, bench, files, count)),
    ]
    return [
        Table(
            "sessions",
            f"Sessions opened and left, {AT_ONCE} sources at once",
            "/s",
            contest(contestants, bench.rounds),
            higher_is_better=True,
            baseline=contestants[-1].name,
            remark="Client and server share the machine. A session also takes the source's place, and gives it back.",
        )
    ]


def _certificates(folder: Path, count: int) -> list[TlsFiles]:
    """A target's, then agents'."""
    authority = Authority.create(folder / "ca", site="bench")
    made = []
    for number in range(count):
        place = folder / str(number)
        place.mkdir()
        role, name = (Role.AGENT, f"{SOURCE}{number}") if number else (Role.TARGET, "outpost")
        key = new_key()
        issued = authority.issue(Identity("bench", role, name), key.public_key(), hosts=[] if number else [HOST])
        (place / "certificate.pem").write_bytes(issued.certificate)
        (place / "key.pem").write_bytes(write_key(key, None))
        (place / "ca.pem").write_bytes((folder / "ca/ca.pem").read_bytes())
        made.append(TlsFiles(place / "certificate.pem", place / "key.pem", place / "ca.pem"))
    return made


def _ours(bench: Bench, files: list[TlsFiles], count: int) -> Measured:
    with bench.site(bench.fresh("sessions")) as place:
        tls = {"certificate": files[0].certificate, "key": files[0].key, "ca": files[0].ca}
        target = place.start_target(tls={name: str(path) for name, path in tls.items()} | {"identities": "required"})
        clock = SystemClock()

        async def open_one(number: int, context: ssl.SSLContext) -> None:
            async def dial() -> FramedStream:
                return await connect(HOST, target.port, networks=DataNetworks.parse([]), tls=context)

            session = await Session.open(dial, hello_for(f"{SOURCE}{number}", bytes([number]) * 16, 1), clock)
            await session.say_goodbye()
            await session.wait_goodbye(10)
            await session.close()

        return Measured(asyncio.run(_rate(open_one, files, count)))


def _bare(bench: Bench, files: list[TlsFiles], count: int) -> Measured:
    port = free_port()
    words = [sys.executable, "-c", BARE, str(port), str(files[0].certificate), str(files[0].key), str(files[0].ca)]
    server = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:

        def listens() -> bool:
            with contextlib.suppress(OSError):
                asyncio.run(open_one(1, client_context(files[1])))
                return True
            return False

        async def open_one(number: int, context: ssl.SSLContext) -> None:
            reader, writer = await asyncio.open_connection(HOST, port, ssl=context, server_hostname=HOST)
            writer.write(b"x")
            await reader.readexactly(1)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

        wait_for("the bare server", listens)
        return Measured(asyncio.run(_rate(open_one, files, count)))
    finally:
        server.terminate()
        server.wait()


async def _rate(open_one: Callable[[int, ssl.SSLContext], Awaitable[None]], files: list[TlsFiles], count: int) -> float:
    """Each source opens one session after another; all of them together a second."""
    left = iter(range(count))

    async def one_source(number: int) -> None:
        context = client_context(files[number])
        for _ in left:
            await open_one(number, context)

    begun = time.perf_counter()
    await asyncio.gather(*(one_source(number) for number in range(1, 1 + AT_ONCE)))
    return count / (time.perf_counter() - begun)
