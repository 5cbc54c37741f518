"""TLS 1.3 only, both sides authenticated; whatever else knocks is refused."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from drengine.model.errors import DrengineError
from drengine.transport.errors import BAD_TLS_FILES, reason_of
from drengine.transport.files import TlsFiles
from drengine.transport.framed import FramedStream, StreamLimits
from drengine.transport.tls import client_context, server_context
from drengine.wire import events as ev
from drengine.wire.connection import Connection, Role
from tests.transport.certificates import Authority
from tests.transport.peers import SECONDS, agent, target
from tests.wire.samples import GEOMETRY, HELLO, joined


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("other"), "another CA")


@pytest.fixture(scope="module")
def server(authority: Authority) -> ssl.SSLContext:
    return server_context(authority.issue("target"))


@pytest.fixture(scope="module")
def client(authority: Authority) -> ssl.SSLContext:
    return client_context(authority.issue("agent"))


def named(stream: FramedStream) -> str:
    """Whose certificate the stream's peer has proved."""
    assert stream._transport is not None
    certificate = stream._transport.get_extra_info("peercert")
    return str(dict(pair[0] for pair in certificate["subject"])["commonName"])


async def test_both_sides_know_each_other(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    async with target(tls=server) as there:
        here = await agent(there.port, tls=client)
        assert named(here) == "target"
        assert named(there.streams[0]) == "agent"
        await here.send(GEOMETRY)
        await here.send(ev.Goodbye())
        await here.close()
        assert there.heard == [GEOMETRY, ev.Goodbye()]
        assert there.failures == []


async def refused_agent(there_tls: ssl.SSLContext, here_tls: ssl.SSLContext | None) -> tuple[str, str]:
    """The reasons that the target and the agent give."""
    async with target(tls=there_tls) as there:
        with pytest.raises(DrengineError) as caught:
            async with asyncio.timeout(SECONDS):
                await agent(there.port, tls=here_tls)
        await there.until(lambda: bool(there.failures))
        assert there.heard == []
        assert there.streams == [], "the session's handler never ran"
        return there.failures[0], reason_of(caught.value)


@pytest.mark.fault(40)
@pytest.mark.parametrize(
    ("days", "theirs", "ours"),
    [((-10, -1), "tls-peer-expired", "tls-own-expired"), ((1, 10), "tls-peer-early", "tls-own-refused")],
)
async def test_an_agent_whose_certificate_is_not_valid_now_is_refused(
    server: ssl.SSLContext, authority: Authority, days: tuple[float, float], theirs: str, ours: str
) -> None:
    assert await refused_agent(server, client_context(authority.issue("expired", days=days))) == (theirs, ours)


@pytest.mark.fault(40)
async def test_an_agent_of_another_ca_is_refused(
    server: ssl.SSLContext, authority: Authority, stranger: Authority
) -> None:
    files = replace(stranger.issue("agent"), ca=authority.path)
    assert await refused_agent(server, client_context(files)) == ("tls-peer-issuer", "tls-own-issuer")


async def test_an_agent_without_a_certificate_is_refused(server: ssl.SSLContext, authority: Authority) -> None:
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.load_verify_locations(authority.path)
    assert await refused_agent(server, bare) == ("tls-peer-missing", "tls-own-missing")


async def test_a_servers_certificate_does_not_make_an_agent(server: ssl.SSLContext, authority: Authority) -> None:
    files = authority.issue("server-only", usage=(ExtendedKeyUsageOID.SERVER_AUTH,))
    assert await refused_agent(server, client_context(files)) == ("tls-peer-purpose", "tls-own-purpose")


@pytest.mark.fault(40)
@pytest.mark.parametrize(
    ("why", "theirs", "ours"),
    [
        ("expired", "tls-own-expired", "tls-peer-expired"),
        ("another CA", "tls-own-issuer", "tls-peer-issuer"),
        ("another host", "tls-own-refused", "tls-peer-name"),
        ("an agent's", "tls-own-purpose", "tls-peer-purpose"),
    ],
)
async def test_a_target_that_can_not_prove_itself_gets_nothing(
    why: str, theirs: str, ours: str, authority: Authority, stranger: Authority, client: ssl.SSLContext
) -> None:
    made: dict[str, Callable[[], TlsFiles]] = {
        "expired": lambda: authority.issue("target-expired", days=(-10, -1)),
        "another CA": lambda: replace(stranger.issue("target"), ca=authority.path),
        "another host": lambda: authority.issue("target-elsewhere", host="127.0.0.2"),
        "an agent's": lambda: authority.issue("agent-as-target", usage=(ExtendedKeyUsageOID.CLIENT_AUTH,)),
    }
    assert await refused_agent(server_context(made[why]()), client) == (theirs, ours)


async def test_tls_1_2_is_refused(server: ssl.SSLContext, authority: Authority) -> None:
    old = client_context(authority.issue("old-agent"))
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert await refused_agent(server, old) == ("tls-version", "tls-version")


@pytest.mark.fault(39)
async def test_plain_text_to_a_tls_port_is_refused(server: ssl.SSLContext) -> None:
    assert await refused_agent(server, None) == ("tls-peer-plain", "tls-unexpected")


@pytest.mark.fault(39)
async def test_tls_to_a_plain_port_is_refused(client: ssl.SSLContext) -> None:
    async with target() as there:
        with pytest.raises(DrengineError) as caught:
            await agent(there.port, tls=client)
        await there.until(lambda: bool(there.failures))
        assert there.failures == ["tls-unexpected"]
        assert reason_of(caught.value) == "tls-peer-plain"


@pytest.mark.fault(39)
async def test_a_greeting_in_plain_text_before_the_handshake_is_refused(server: ssl.SSLContext) -> None:
    async with target(tls=server) as there:
        reader, writer = await asyncio.open_connection("127.0.0.1", there.port)
        writer.write(joined(Connection(Role.AGENT).send(HELLO)))
        await there.until(lambda: there.failures == ["tls-peer-plain"])
        async with asyncio.timeout(SECONDS):
            await reader.read()
        writer.close()
        assert there.streams == []


@pytest.mark.fault(38)
async def test_a_stalled_tls_handshake_is_given_up_and_disturbs_nobody(
    server: ssl.SSLContext, client: ssl.SSLContext
) -> None:
    async with target(tls=server, limits=StreamLimits(opening_seconds=0.3)) as there:
        stalled = [await asyncio.open_connection("127.0.0.1", there.port) for _ in range(5)]
        here = await agent(there.port, tls=client)
        await here.send(GEOMETRY)
        await there.until(lambda: len(there.failures) == 5)
        assert set(there.failures) == {"opening-timeout"}
        await here.send(ev.Ping(1))
        assert await here.receive() == ev.Pong(1)
        for reader, writer in stalled:
            async with asyncio.timeout(SECONDS):
                assert await reader.read() == b""
            writer.close()
        here.abort()


async def test_each_connection_proves_its_certificate_anew(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    async with target(tls=server) as there:
        for _ in range(2):
            here = await agent(there.port, tls=client)
            assert here._transport is not None
            assert here._transport.get_extra_info("ssl_object").session_reused is False
            assert here._transport.get_extra_info("ssl_object").version() == "TLSv1.3"
            here.abort()


@pytest.mark.parametrize("context", [server_context, client_context])
@pytest.mark.parametrize(
    "why",
    ["no certificate", "no key", "no ca", "a folder", "not PEM", "empty CA", "another's key", "a passphrase"],
)
def test_files_that_do_not_fit_are_named(
    why: str, context: Callable[[TlsFiles], ssl.SSLContext], authority: Authority, tmp_path: Path
) -> None:
    good = authority.issue("good")
    rubbish, empty = tmp_path / "rubbish.pem", tmp_path / "empty.pem"
    rubbish.write_text("this is no certificate\n")
    empty.write_text("")
    missing = tmp_path / "missing.pem"
    files, named = {
        "no certificate": (replace(good, certificate=missing), missing),
        "no key": (replace(good, key=missing), missing),
        "no ca": (replace(good, ca=missing), missing),
        "a folder": (replace(good, ca=tmp_path), tmp_path),
        "not PEM": (replace(good, certificate=rubbish), rubbish),
        "empty CA": (replace(good, ca=empty), empty),
        "another's key": (replace(good, key=authority.issue("other").key), good.certificate),
        "a passphrase": (authority.issue("locked", password=b"secret"), "passphrase"),
    }[why]
    with pytest.raises(DrengineError) as caught:
        context(files)
    assert caught.value.kind is BAD_TLS_FILES
    assert str(named) in caught.value.message
