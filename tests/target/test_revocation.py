"""What a CRL says counts at the next handshake, and for sessions that are open: within 5 s of the file's change."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from drengine.durable import replace_durably
from drengine.identity.authority import Authority
from drengine.identity.keys import new_key, write_key
from drengine.identity.names import Identity
from drengine.model.errors import DrengineError
from drengine.model.grants import Access
from drengine.nbd.client import NbdClient
from drengine.target.config import TlsOptions
from drengine.target.daemon import REVOCATION_SECONDS
from drengine.transport.endpoints import connect
from drengine.transport.errors import TransportError
from drengine.transport.files import TlsFiles
from drengine.transport.networks import DataNetworks
from drengine.transport.tls import client_context
from drengine.transport.tls_check import Side, check_files
from drengine.wire.events import ABILITIES, Hello, Welcome
from tests.clock import ManualClock
from tests.target.agent import Agent, Site, running
from tests.target.test_certificates import reason, replicating, until

pytestmark = [pytest.mark.timeout(90), pytest.mark.fault(40), pytest.mark.fault(75)]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority.create(tmp_path / "ca", "main")
    made.write_crl()
    return made


def party(authority: Authority, name: str) -> TlsFiles:
    key, folder = new_key(), authority.folder.parent
    issued = authority.issue(
        Identity.parse(f"drengine://main/{name}"), key.public_key(), hosts=("127.0.0.1",) if "target" in name else ()
    )
    files = TlsFiles(
        *(folder / f"{name.replace('/', '-')}.{end}" for end in ("pem", "key")), authority.folder / "ca.pem"
    )
    files.certificate.write_bytes(issued.certificate)
    files.key.write_bytes(write_key(key))
    return files


def tls(authority: Authority) -> TlsOptions:
    files = party(authority, "target/outpost")
    return TlsOptions(files.certificate, files.key, files.ca, authority.folder / "crl.pem")


async def joined(site: Site, files: TlsFiles, source: str) -> Agent:
    stream = await connect(*site.address, networks=DataNetworks(), tls=client_context(files))
    await stream.send(Hello(2, 2, ABILITIES, source, source.encode().ljust(16), 1))
    welcome = await stream.receive()
    assert isinstance(welcome, Welcome), welcome
    agent = Agent(stream, welcome, welcome.durable_sequence).start()
    site.agents.append(agent)
    return agent


def identity(name: str) -> Identity:
    return Identity.parse(f"drengine://main/{name}")


async def test_the_session_of_whoever_is_revoked_ends_within_five_seconds_and_no_other(
    tmp_path: Path, authority: Authority
) -> None:
    clock = ManualClock(time.time_ns())
    shop, web = party(authority, "agent/shop"), party(authority, "agent/web")
    async with running(tmp_path / "store", tls=tls(authority), clock=clock) as site:
        revoked, kept = await joined(site, shop, "shop"), await joined(site, web, "web")
        authority.revoke(identity=identity("agent/shop"))
        assert REVOCATION_SECONDS < 5
        clock.advance(REVOCATION_SECONDS)
        refuse = await revoked.refused()
        assert refuse.code == "tls-peer-revoked"
        assert "drengine://main/agent/shop" in refuse.message
        await site.left("shop")
        await kept.acknowledged(await kept.declare())
        with pytest.raises(TransportError) as failed:
            await joined(site, shop, "shop")
        assert failed.value.reason == "tls-own-revoked"
        await joined(site, party(authority, "agent/shop"), "shop")


async def test_a_hang_up_ends_the_session_at_once(tmp_path: Path, authority: Authority) -> None:
    shop = party(authority, "agent/shop")
    async with running(tmp_path / "store", tls=tls(authority), clock=ManualClock(time.time_ns())) as site:
        agent = await joined(site, shop, "shop")
        authority.revoke(identity=identity("agent/shop"))
        site.daemon.reload()
        assert (await agent.refused()).code == "tls-peer-revoked"


async def test_an_open_connection_to_an_export_is_cut_off(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    clock, socket = ManualClock(time.time_ns()), tmp_path / "nbd.sock"
    files = {name: party(authority, name) for name in ("agent/shop", "host/standby", "host/other")}
    async with running(tmp_path / "store", tls=tls(authority), clock=clock, nbd_socket=socket) as site:
        agent = await joined(site, files["agent/shop"], "shop")
        await agent.declare()
        await agent.write(0, b"x" * 4096)
        sequence = await agent.cut()
        await agent.acknowledged(sequence)
        for host in ("host/standby", "host/other"):
            site.store.grants.give("shop", 1, Access.READ, holder=host, sequence=sequence)

        def opened(name: str) -> NbdClient:
            context = client_context(files[name])
            context.check_hostname = False
            return NbdClient(str(socket), "shop/data", tls=context)

        revoked = await asyncio.to_thread(opened, "host/standby")
        kept = await asyncio.to_thread(opened, "host/other")
        assert await asyncio.to_thread(revoked.read, 0, 4096) == b"x" * 4096
        authority.revoke(identity=identity("host/standby"))
        clock.advance(REVOCATION_SECONDS)
        await until(lambda: site.daemon.metrics.nbd_connections() == 1)
        (told,) = [each for each in caplog.messages if "cut off" in each]
        assert "drengine://main/host/standby" in told
        assert await asyncio.to_thread(kept.read, 0, 4096) == b"x" * 4096
        with pytest.raises((DrengineError, OSError)):
            await asyncio.to_thread(revoked.read, 0, 4096)
        await asyncio.to_thread(kept.close)


async def test_a_crl_that_can_not_be_used_changes_nothing(tmp_path: Path, authority: Authority) -> None:
    shop, crl = party(authority, "agent/shop"), authority.folder / "crl.pem"
    async with running(tmp_path / "store", tls=tls(authority)) as site:
        credentials = site.daemon.credentials
        assert credentials is not None
        authority.revoke(identity=identity("agent/shop"))
        site.daemon.reload()
        good = crl.read_bytes()
        expired = Authority(authority.folder, clock=ManualClock(time.time_ns() - 10**12)).write_crl(seconds=1)
        for bad, code in (
            (b"", "tls-not-pem"),
            (good[:-40], "tls-not-pem"),
            (authority.certificate + good, "tls-not-pem"),
            (good.replace(b"\nMI", b"\nNI"), "tls-not-pem"),
            (expired, "tls-crl"),
        ):
            replace_durably(crl, bad)
            site.daemon.reload()
            assert credentials.rejected is not None and credentials.rejected.reason == code
            with pytest.raises(TransportError) as failed:
                await joined(site, shop, "shop")
            assert failed.value.reason == "tls-own-revoked"
        replace_durably(crl, good)
        site.daemon.reload()
        assert credentials.rejected is None
        assert credentials.expiry_seconds()["crl"] > 364 * 86400


async def test_a_crl_of_another_ca_lets_nobody_in(tmp_path: Path, authority: Authority) -> None:
    other = Authority.create(tmp_path / "other", "main")
    options = tls(authority)
    shop = party(authority, "agent/shop")
    replace_durably(authority.folder / "crl.pem", other.write_crl())
    async with running(tmp_path / "store", tls=options) as site:
        with pytest.raises(TransportError):
            await joined(site, shop, "shop")
        counted = 'target_sessions_ended_total{reason="tls-crl"} 1.0'
        await until(lambda: counted in site.daemon.metrics.metrics.render().decode())


async def test_an_agent_does_not_ship_to_a_revoked_target(tmp_path: Path, authority: Authority) -> None:
    server = party(authority, "agent/server")
    async with running(tmp_path / "store", tls=tls(authority)) as site:
        authority.revoke(identity=identity("target/outpost"))
        files = TlsFiles(server.certificate, server.key, server.ca, authority.folder / "crl.pem")
        async with replicating(tmp_path, site.address, files) as agent:
            await until(lambda: reason(agent) == ("DISCONNECTED", "tls-failed"))
            assert "revoked" in str(agent.status()["detail"])
        assert site.store.sources() == []


def test_an_expired_crl_is_found_before_anybody_relies_on_it(tmp_path: Path, authority: Authority) -> None:
    options = tls(authority)
    files = options.files
    assert files is not None
    check_files(files, Side.SERVER, now=time.time(), address="127.0.0.1")
    with pytest.raises(TransportError) as refused:
        check_files(files, Side.SERVER, now=time.time() + 366 * 86400, address="127.0.0.1")
    assert refused.value.reason == "tls-own-expired"
    authority.write_crl(seconds=60)
    with pytest.raises(TransportError) as refused:
        check_files(files, Side.SERVER, now=time.time() + 61, address="127.0.0.1")
    assert refused.value.reason == "tls-crl"
