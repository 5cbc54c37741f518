"""Our certificate at the broker: the one that lies on disk at each connection, and a cause for each that is refused."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from random import Random

import pytest

from drengine.config import Address
from drengine.control.config import BrokerOptions
from drengine.control.link import Link
from drengine.model.clock import SystemClock
from drengine.transport.causes import CAUSES
from drengine.transport.files import TlsFiles
from drengine.transport.tls import server_context
from tests.control.site import Mosquitto, free_port, until
from tests.transport.certificates import Authority
from tests.transport.test_credentials import renew

pytestmark = [pytest.mark.timeout(60), pytest.mark.fault(75)]


def link(port: int, files: TlsFiles) -> Link:
    options = BrokerOptions(
        address=Address("127.0.0.1", port), certificate=files.certificate, key=files.key, ca=files.ca
    )
    return Link(options, client_id="shop", filters=["a"], receive=lambda _: None, clock=SystemClock(), random=Random(1))


async def test_each_connection_shows_the_certificate_that_is_on_disk(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path / "ca")
    files = authority.issue("shop")
    shown: asyncio.Queue[str] = asyncio.Queue()

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        certificate = writer.get_extra_info("peercert")
        shown.put_nowait(dict(pair[0] for pair in certificate["subject"])["commonName"])
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=server_context(authority.issue("broker")))
    connecting = asyncio.create_task(link(server.sockets[0].getsockname()[1], files).run())
    try:
        async with asyncio.timeout(20):
            assert await shown.get() == "shop"
            renew(files, authority.issue("renewed"))
            while await shown.get() != "renewed":
                pass
    finally:
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
        server.close()


async def test_a_broker_whose_certificate_is_refused_is_told_by_its_cause(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path / "ca")
    expired = server_context(authority.issue("broker", days=(-9, -1)))
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=expired)
    made = link(server.sockets[0].getsockname()[1], authority.issue("shop"))
    connecting = asyncio.create_task(made.run())
    try:
        async with asyncio.timeout(20):
            while made.detail == "not connected yet":  # noqa: ASYNC110 (a link tells nobody that it failed)
                await asyncio.sleep(0.01)
        assert "expired" in made.detail
        assert CAUSES["tls-peer-expired"].hint in made.detail
    finally:
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
        server.close()


async def test_a_broker_whose_certificate_names_somebody_else_is_not_believed(tmp_path: Path) -> None:
    """A target's certificate names an address as well, and so may a source's of another CA."""
    authority = Authority.make(tmp_path / "ca")
    strange = authority.issue("outpost", uris=("drengine://main/target/outpost",))
    broker = Mosquitto(
        tmp_path,
        f"listener {(port := free_port())} 127.0.0.1\ncafile {strange.ca}\ncertfile {strange.certificate}\n"
        f"keyfile {strange.key}\nuser root\nallow_anonymous true\n",
        port=port,
    )
    broker.start()
    made = link(port, authority.issue("shop"))
    connecting = asyncio.create_task(made.run())
    try:
        await until(lambda: "drengine://main/target/outpost" in made.detail)
        assert not made.connections
    finally:
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
        broker.kill()


def test_a_context_that_openssl_makes_for_sockets_is_usable_too(tmp_path: Path) -> None:
    """paho wraps a socket and no pair of buffers."""
    context = server_context(Authority.make(tmp_path / "ca").issue("broker"))
    assert issubclass(context.sslobject_class, ssl.SSLObject)
