"""Certificates renew by themselves and revocations arrive by themselves, and no session breaks for it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

import drengine.target.daemon
import drengine_agent.daemon.main
from drengine.control.seals import BadSealError, Purpose, Seals, unsealed
from drengine.enrolment import client, keeper
from drengine.enrolment.client import renew
from drengine.enrolment.keeper import Keeper, keeping
from drengine.enrolment.messages import Updates
from drengine.enrolment.place import Place
from drengine.enrolment.seen import read_seen
from drengine.identity.authority import Authority
from drengine.identity.errors import EnrolmentError
from drengine.identity.names import Role
from drengine.identity.verify import SERVER, NotBelievedError, Trust
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.model.grants import Access
from drengine.nbd.client import NbdClient
from drengine.target.config import TlsOptions
from drengine.transport.errors import TransportError
from drengine.transport.files import TlsFiles
from drengine.transport.tls import client_context, server_context
from drengine.wire.events import Credit, Ping, Pong
from tests.clock import ManualClock
from tests.enrolment.site import serving, until
from tests.target.agent import Agent, running
from tests.target.test_certificates import reason, replicating
from tests.target.test_revocation import joined

pytestmark = pytest.mark.timeout(180)
PROMISED_SECONDS = 5.0
TEN_MINUTES = 600
NBD_NAMES = ("client-cert.pem", "client-key.pem", "ca-cert.pem")
LOOKED_SECONDS = 20
"""A certificate of ten minutes is looked at each 15 s."""
NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME: OpenSSL knows no clock but the machine's, so these tests judge the time themselves."""


def tls(place: Place) -> TlsOptions:
    """The section as people write it: the CRL that enrolment keeps beside the certificate is found."""
    return TlsOptions(place.files.certificate, place.files.key, place.files.ca)


def timeless(make: Callable[..., ssl.SSLContext]) -> Callable[..., ssl.SSLContext]:
    def made(*arguments: object) -> ssl.SSLContext:
        context = make(*arguments)
        context.verify_flags |= NO_CHECK_TIME
        return context

    return made


@pytest.fixture
def owned_time(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    monkeypatch.setattr(client, "_context", timeless(client._context))
    monkeypatch.setattr(drengine.target.daemon, "server_context", timeless(server_context))
    return ManualClock(time.time_ns())


async def test_certificates_of_ten_minutes_renew_for_an_hour_and_no_session_breaks(
    tmp_path: Path, owned_time: ManualClock
) -> None:
    clock, begun = owned_time, owned_time.now_ns()
    async with serving(tmp_path, clock=clock, seconds=TEN_MINUTES) as site:
        target = await site.joined("outpost", Role.TARGET, hosts=("127.0.0.1",))
        shop = await site.joined("shop")
        serials: set[int] = set()
        async with (
            running(tmp_path / "store", tls=tls(target), clock=clock) as outpost,
            keeping([shop.files], clock) as (kept,),
        ):
            first = await joined(outpost, shop.files, "shop")
            await first.declare()
            while clock.now_ns() - begun < 3600 * 10**9:
                for _ in range(60):
                    clock.advance(5)
                    await answered(first)
                    for each in (kept, *outpost.daemon.metrics.keepers):
                        if each.overdue_seconds > LOOKED_SECONDS:  # it has begun, and takes time that is not ours
                            await until(lambda each=each: not each.overdue_seconds)  # type: ignore[misc]
                await first.write(0, str(clock.now_ns()).encode().ljust(4096))
                await first.acknowledged(await first.cut())
                ca = Trust.read(shop.files.ca.read_bytes(), shop.revocations().encode())
                trust_now = clock.now_ns() / 1e9
                assert ca.believe(shop.files.certificate.read_bytes(), now=trust_now).identity is not None
                shown = outpost.daemon.credentials
                assert shown is not None and shown.rejected is None
                serials.add(await asyncio.to_thread(seen_at, outpost.address, ca, trust_now, shop.files))
                assert kept.failure == ""
        assert len(serials) >= 6, "the target shows a new certificate again and again"
        renewed = [each for each in site.authority.entries() if each.identity.endswith("agent/shop")]
        assert len(renewed) >= 6
        with pytest.raises(NotBelievedError):  # with which the session that stands once began
            ca.believe(first.stream.peer_certificate or b"", now=trust_now, purpose=SERVER)


async def answered(agent: Agent) -> None:
    """The session lives: what is asked is answered, and nothing else was said."""
    await agent.stream.send(Ping(7))
    await agent.until(lambda: Pong(7) in agent.events)
    assert agent.failure is None and all(isinstance(each, Pong | Credit) for each in agent.events)
    agent.events.clear()


async def pass_time(clock: ManualClock, seconds: float, step: float = 2.0) -> None:
    for _ in range(round(seconds / step)):
        clock.advance(step)
        await asyncio.sleep(0.004)


def seen_at(address: tuple[str, int], trust: Trust, now: float, files: TlsFiles) -> int:
    """The serial number that a new client is shown, and believes at that moment."""
    context = timeless(client_context)(files)
    with socket.create_connection(address, 10) as plain, context.wrap_socket(plain, server_hostname=address[0]) as met:
        return trust.believe(met.getpeercert(binary_form=True) or b"", now=now, purpose=SERVER).serial


async def test_a_revocation_ends_sessions_and_exports_within_five_seconds(tmp_path: Path) -> None:
    socket_path = tmp_path / "nbd.sock"
    async with serving(tmp_path) as site:
        outpost = await site.joined("outpost", Role.TARGET, hosts=("127.0.0.1",))
        shop, mill = await site.joined("shop"), await site.joined("mill")
        standby = await site.joined("standby", Role.HOST)
        async with running(tmp_path / "store", tls=tls(outpost), nbd_socket=socket_path) as target:
            gone, kept = await joined(target, shop.files, "shop"), await joined(target, mill.files, "mill")
            await gone.declare()
            await gone.write(0, b"x" * 4096)
            sequence = await gone.cut()
            await gone.acknowledged(sequence)
            target.store.grants.give("shop", 1, Access.READ, holder="host/standby", sequence=sequence)
            context = client_context(TlsFiles(*(standby.folder / name for name in NBD_NAMES)))
            context.check_hostname = False
            reader = await asyncio.to_thread(lambda: NbdClient(str(socket_path), "shop/data", tls=context))
            await asyncio.to_thread(reader.read, 0, 4096)
            begun = time.monotonic()
            site.revoke("shop")
            site.revoke("standby", Role.HOST)
            assert (await gone.refused()).code == "tls-peer-revoked"
            await until(lambda: target.daemon.metrics.nbd_connections() == 0)
            assert time.monotonic() - begun < PROMISED_SECONDS
            with pytest.raises((DrengineError, OSError)):
                await asyncio.to_thread(reader.read, 0, 4096)
            with pytest.raises(TransportError) as refused:
                await joined(target, shop.files, "shop")
            assert refused.value.reason == "tls-own-revoked"
            await kept.declare()
            assert kept.failure is None and not kept.events


async def test_an_agent_leaves_a_target_that_is_revoked_within_five_seconds(tmp_path: Path) -> None:
    async with serving(tmp_path) as site:
        outpost = await site.joined("outpost", Role.TARGET, hosts=("127.0.0.1",))
        server = await site.joined("server")
        files = TlsFiles(server.files.certificate, server.files.key, server.files.ca)
        async with (
            running(tmp_path / "store", tls=tls(outpost)) as target,
            replicating(tmp_path, target.address, files) as agent,
        ):

            def changed() -> None:
                drengine_agent.daemon.main._take_certificates(agent, None)

            async with keeping([files], SystemClock(), changed):
                await until(lambda: reason(agent)[0] == "CONTINUOUS")
                begun = time.monotonic()
                site.revoke("outpost", Role.TARGET)
                await until(lambda: reason(agent) == ("DISCONNECTED", "tls-failed"))
                assert time.monotonic() - begun < PROMISED_SECONDS
                assert "revoked" in str(agent.status()["detail"])


async def test_the_authority_knows_when_it_heard_of_whom(tmp_path: Path) -> None:
    clock = ManualClock(time.time_ns())
    async with serving(tmp_path, clock=clock) as site:
        shop = await site.joined("shop")
        async with keeping([shop.files], clock) as (kept,):
            await until(lambda: site.authority.folder and clock.advance(0.5) is None and read_seen(tmp_path / "ca"))
            assert read_seen(tmp_path / "ca")["drengine://main/agent/shop"].address == "127.0.0.1"
            assert kept.failure == ""


async def test_while_the_authority_is_away_the_certificate_and_the_list_go_on_and_age(
    tmp_path: Path, owned_time: ManualClock
) -> None:
    clock, changes = owned_time, []
    async with serving(tmp_path, clock=clock, seconds=TEN_MINUTES) as site:
        shop = await site.joined("shop")
    before = shop.certificate()
    async with keeping([shop.files], clock, lambda: changes.append(1)) as (kept,):
        await pass_time(clock, 480)
        assert "127.0.0.1" in kept.failure
        assert kept.silent_seconds == 480 and 0 < kept.overdue_seconds < 480
        assert shop.certificate() == before and not changes
        async with serving(tmp_path, clock=clock, seconds=TEN_MINUTES, port=site.address.port):
            await until(lambda: clock.advance(1.0) is None and shop.certificate() != before)
            await until(lambda: clock.advance(1.0) is None and kept.silent_seconds < 40)
            assert kept.overdue_seconds == 0 and kept.failure == "" and changes


async def test_whoever_is_revoked_is_not_renewed(tmp_path: Path) -> None:
    async with serving(tmp_path) as site:
        shop = await site.joined("shop")
        site.revoke("shop")
        with pytest.raises(EnrolmentError) as refused:
            await renew(shop, clock=SystemClock())
        assert refused.value.reason == "identity-revoked"


async def test_nobody_renews_with_another_ones_certificate(tmp_path: Path) -> None:
    """A certificate alone, which everybody can see in a handshake, or with another key, proves nothing."""
    async with serving(tmp_path) as site:
        shop, mill = await site.joined("shop"), await site.joined("mill")
        certificate, _ = shop.pair()
        _, key = mill.pair()
        trusting = client._context(site.authority.certificate.decode())
        for shown in ((certificate.public_bytes(Encoding.DER), key), None):
            with pytest.raises(EnrolmentError) as refused:
                await client._ask(site.address, trusting, "GET", "/v1/updates", Updates, shown=shown)
            assert refused.value.reason == "identity-revoked"
        with pytest.raises(EnrolmentError):
            await client.identities(shop)  # only brokers are told


async def test_old_or_foreign_lists_are_not_taken(tmp_path: Path) -> None:
    """An authority that was put back from a copy does not know who was revoked since."""
    async with serving(tmp_path) as site:
        shop = await site.joined("shop")
        old = Updates(shop.authorities(), shop.revocations())
        await site.joined("mill")
        site.revoke("mill")
        async with keeping([shop.files], SystemClock()):
            await until(lambda: shop.revocations() != old.crl)
        kept, version = Keeper(shop, SystemClock()), shop.version
        other = Authority.create(tmp_path / "other", "main")
        for news in (
            old,
            Updates(other.certificate.decode(), other.write_crl().decode()),
            Updates(old.ca, ""),
            Updates("", old.crl),
            Updates("x", "x"),
            Updates(old.ca, old.crl[:-40]),
        ):
            with pytest.raises(EnrolmentError):
                await kept._take(news)
            assert shop.version == version


async def test_renewals_of_a_site_are_spread(tmp_path: Path) -> None:
    async with serving(tmp_path, seconds=TEN_MINUTES) as site:
        due = {keeper._due_at((await site.joined(f"shop-{n}")).certificate()) for n in range(12)}
        assert max(due) - min(due) > 5
        found = site.place("shop-0").certificate()
        life = keeper._life_seconds(found)
        begins = found.not_valid_before_utc.timestamp()
        assert all(0.6 * life < each - begins <= 2 / 3 * life + 15 for each in due)


async def test_a_half_of_a_pair_is_never_in_use(tmp_path: Path) -> None:
    """While the pair changes as fast as it can, whoever loads it always gets one that fits."""
    async with serving(tmp_path) as site:
        shop = await site.joined("shop")
        done = asyncio.Event()

        def load() -> int:
            count = 0
            while not done.is_set():
                client_context(shop.files.settled())
                shop.pair()
                count += 1
            return count

        loading = asyncio.create_task(asyncio.to_thread(load))
        for _ in range(30):
            await renew(shop, clock=SystemClock())
        done.set()
        assert await loading > 30


async def test_news_that_come_during_a_renewal_wait_for_it(tmp_path: Path) -> None:
    """Both change the folder, in one loop: neither may hold the other up for good."""
    async with serving(tmp_path) as site:
        shop = await site.joined("shop")
        kept = Keeper(shop, SystemClock())
        await site.joined("mill")
        async with shop.changing():
            site.revoke("mill")
            await until(lambda: (tmp_path / "ca/crl.pem").read_text() != shop.revocations())
            news = Updates(site.authority.certificate.decode(), (tmp_path / "ca/crl.pem").read_text())
            taking = asyncio.create_task(kept._take(news))
            await asyncio.sleep(0.2)
            assert not taking.done()
        await taking
        assert shop.version == news.version


async def test_an_order_of_an_orchestrator_that_was_revoked_counts_no_more(tmp_path: Path) -> None:
    """Orders are judged by the CRL that enrolment keeps beside the certificate, though nobody has named it."""
    async with serving(tmp_path) as site:
        boss, shop = await site.joined("boss", Role.ORCHESTRATOR), await site.joined("shop")
        files = [TlsFiles(each.files.certificate, each.files.key, each.files.ca) for each in (boss, shop)]
        orders, judge = (Seals(each, SystemClock()) for each in files)
        sealed = unsealed(orders.seal(Purpose.ORDER, b"{}"))
        assert sealed is not None
        assert judge.verify(Purpose.ORDER, sealed).name == "boss"
        async with keeping(files[1:], SystemClock()):
            begun = time.monotonic()
            site.revoke("boss", Role.ORCHESTRATOR)

            def is_refused() -> bool:
                try:
                    judge.verify(Purpose.ORDER, sealed)
                except BadSealError as error:
                    return error.code == "revoked"
                return False

            await until(is_refused, PROMISED_SECONDS)
            assert time.monotonic() - begun < PROMISED_SECONDS


async def test_what_is_signed_during_a_renewal_is_believed(tmp_path: Path) -> None:
    """Key and certificate that sign are of one pair, at every moment."""
    async with serving(tmp_path) as site:
        boss = await site.joined("boss", Role.ORCHESTRATOR)
        seals, done = Seals(boss.files, SystemClock()), asyncio.Event()

        def sign() -> int:
            count = 0
            while not done.is_set():
                sealed = unsealed(seals.seal(Purpose.ORDER, b"{}"))
                assert sealed is not None and seals.verify(Purpose.ORDER, sealed).name == "boss"
                count += 1
            return count

        signing = asyncio.create_task(asyncio.to_thread(sign))
        for _ in range(20):
            await renew(boss, clock=SystemClock())
        done.set()
        assert await signing > 20
