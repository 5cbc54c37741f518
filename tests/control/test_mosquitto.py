"""Mosquitto as `drengine broker config` sets it up for certificates of any CA, and really run: TLS 1.3, certificates as
names, each kept to its own topics.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiomqtt
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from drengine.config import Address
from drengine.control.config import BrokerOptions
from drengine.control.messages import AgentReport, Command, Verb
from drengine.control.topics import RESERVED_NAMES
from drengine.enrolment.mosquitto import ACL_FILE, configuration, pattern_list
from drengine.model.errors import DrengineError
from drengine.transport.files import CRL_FILE, TlsFiles
from drengine.transport.tls import client_context
from tests.control.site import Mosquitto, Worker, free_port, orchestrator, party, until
from tests.transport.certificates import DAY, NOW, Authority

ORCHESTRATOR = next(iter(RESERVED_NAMES))


def crl(authority: Authority, *revoked: TlsFiles) -> bytes:
    """The authority's list of revoked certificates."""
    listed = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, authority.name)]))
        .last_update(NOW - DAY)
        .next_update(NOW + DAY)
    )
    for files in revoked:
        serial = x509.load_pem_x509_certificate(files.certificate.read_bytes()).serial_number
        one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - datetime.timedelta(hours=1))
        listed = listed.add_revoked_certificate(one.build())
    return listed.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@dataclass
class Site:
    """A broker with the written files, and the authority that its clients are known to."""

    authority: Authority
    broker: Mosquitto
    acl: Path
    crl: Path

    def identity(self, name: str) -> TlsFiles:
        return self.authority.issue(name)

    def options(self, files: TlsFiles) -> BrokerOptions:
        return BrokerOptions(
            address=Address("127.0.0.1", self.broker.port), certificate=files.certificate, key=files.key, ca=files.ca
        )

    def client(self, files: TlsFiles, identifier: str = "", timeout: float = 5.0, **more: object) -> aiomqtt.Client:
        return aiomqtt.Client(
            "127.0.0.1",
            self.broker.port,
            identifier=identifier or None,
            protocol=aiomqtt.ProtocolVersion.V5,
            tls_context=client_context(files),
            timeout=timeout,
            **more,  # type: ignore[arg-type]
        )


@pytest.fixture
def site(tmp_path: Path) -> AsyncIterator[Site]:
    authority = Authority.make(tmp_path / "ca")
    files = authority.issue("broker")
    place, port = tmp_path / "drengine", free_port()
    place.mkdir()
    for name, file in (("certificate", files.certificate), ("key", files.key), ("ca", authority.path)):
        shutil.copy(file, place / f"{name}.pem")
    acl, revoked = place / ACL_FILE, place / CRL_FILE
    acl.write_text(pattern_list("main", [ORCHESTRATOR]))
    revoked.write_bytes(crl(authority))
    text = configuration(place, port=port).replace("/var/lib/mosquitto/", f"{tmp_path}/")
    text = text.replace(f"listener {port}", f"user root\nlistener {port} 127.0.0.1")
    broker = Mosquitto(tmp_path, text, port=port)
    broker.start()
    yield Site(authority, broker, acl, revoked)
    broker.kill()


async def heard(client: aiomqtt.Client, end: str) -> list[tuple[str, bytes]]:
    """What arrives before a message on the topic `end`."""
    found = []
    async with asyncio.timeout(10):
        async for message in client.messages:
            if message.topic.value == end:
                return found
            assert isinstance(message.payload, bytes)
            found.append((message.topic.value, message.payload))
    raise AssertionError("the connection ended")


async def smuggle(site: Site, files: TlsFiles, topic: str, *, retain: bool = False) -> None:
    """Try to say what one may not, and wait until the broker has looked at it (2.0.11 may throw one out for it)."""
    with contextlib.suppress(aiomqtt.MqttError):
        async with site.client(files, timeout=1.0) as client:
            await client.publish(topic, b"forged", retain=retain)
            await client.subscribe("drengine/main/agent/mill/command", 1)


async def test_agents_and_orchestrators_work_over_the_broker(site: Site, tmp_path: Path) -> None:
    shop, boss = site.identity("shop"), site.identity(ORCHESTRATOR)
    async with party(site.options(shop), Worker(tmp_path)), orchestrator(site.options(boss)) as agents:
        await until(lambda: agents.is_online("shop") and "shop" in agents.reports(), "the agent")
        assert (await agents.command("shop", Verb.SYNC, {}, generation=1, id="1", timeout_seconds=20)).ok
        before = agents.reports()["shop"].sequence
        await until(lambda: agents.reports()["shop"].sequence > before, "another report")


async def test_a_party_can_neither_read_nor_write_what_is_anothers(site: Site) -> None:
    boss, shop, mill = (site.identity(name) for name in (ORCHESTRATOR, "shop", "mill"))
    async with site.client(boss) as orchestrating, site.client(shop) as honest, site.client(mill) as curious:
        await orchestrating.subscribe("drengine/#", 1)
        await honest.subscribe("drengine/main/agent/shop/command", 1)
        for everything in (
            "#",
            "drengine/#",
            "drengine/main/agent/shop/command",
            "drengine/main/agent/+/report",
            "$SYS/#",
        ):
            await curious.subscribe(everything, 1)
        for leaf in ("presence", "report", "answer", "command"):
            await smuggle(site, mill, f"drengine/main/agent/shop/{leaf}", retain=leaf != "command")
        for topic in ("drengine/main/agent/mill/command", "drengine/main/orchestrator/x/presence", "elsewhere"):
            await smuggle(site, mill, topic)
        await honest.publish("drengine/main/agent/shop/report", b"true", 1)
        await orchestrating.publish("drengine/main/agent/shop/command", b"secret", 1)
        await curious.publish("drengine/main/agent/mill/report", b"end", 1)
        assert await heard(orchestrating, "drengine/main/agent/mill/report") == [
            ("drengine/main/agent/shop/report", b"true"),
            ("drengine/main/agent/shop/command", b"secret"),
        ]
        assert await heard(curious, "drengine/main/agent/mill/report") == []
        await orchestrating.publish("drengine/main/agent/shop/command", b"end", 1)
        message = await anext(aiter(honest.messages))
        assert message.payload == b"secret"


@pytest.mark.fault(52)
@pytest.mark.parametrize("name", ["#", "+", "shop+", "$SYS"])
async def test_a_certificate_whose_name_is_a_wildcard_opens_nothing(site: Site, name: str) -> None:
    odd, boss = site.identity(name), site.identity(ORCHESTRATOR)
    async with site.client(boss) as orchestrating:
        await orchestrating.subscribe("drengine/#", 1)
        with contextlib.suppress(aiomqtt.MqttError):
            async with site.client(odd) as client:
                await client.subscribe("drengine/main/agent/+/command", 1)
                await client.publish("drengine/main/agent/shop/report", b"forged")
                await orchestrating.publish("drengine/main/agent/shop/command", b"secret", 1)
                await asyncio.sleep(0)
                assert len(client.messages) == 0
        await orchestrating.publish("drengine/main/agent/end/command", b"", 1)
        found = await heard(orchestrating, "drengine/main/agent/end/command")
        assert ("drengine/main/agent/shop/report", b"forged") not in found


def refused(site: Site, context: ssl.SSLContext) -> bool:
    """Whether a handshake with this context is refused, at once or at the first byte."""
    connect = b"\x10\x11\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x04shop"
    try:
        with (
            socket.create_connection(("127.0.0.1", site.broker.port), 10) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as stream,
        ):
            stream.sendall(connect)
            return stream.recv(1) == b""
    except (ssl.SSLError, ConnectionError):
        return True


def test_who_has_no_certificate_of_ours_stays_outside(site: Site, tmp_path: Path) -> None:
    ours = site.identity("shop")
    stranger = Authority.make(tmp_path / "other", "other CA").issue("shop")
    assert not refused(site, client_context(ours))
    assert refused(site, client_context(TlsFiles(stranger.certificate, stranger.key, ours.ca)))
    nobody = ssl.create_default_context(cafile=str(ours.ca))
    assert refused(site, nobody)
    expired = site.authority.issue("late", days=(-20, -10))
    assert refused(site, client_context(expired))


def test_tls_1_2_is_refused(site: Site) -> None:
    ours = site.identity("shop")
    old = ssl.create_default_context(cafile=str(ours.ca))
    old.load_cert_chain(ours.certificate, ours.key)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert refused(site, old)


def test_plain_mqtt_is_refused(site: Site) -> None:
    with socket.create_connection(("127.0.0.1", site.broker.port), 10) as plain:
        plain.sendall(b"\x10\x11\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x04shop")
        plain.settimeout(10)
        with contextlib.suppress(ConnectionError):
            assert plain.recv(16)[:1] in (b"", b"\x15")  # the end, or a TLS alert


async def test_an_agent_does_not_speak_to_a_broker_of_another_authority(site: Site, tmp_path: Path) -> None:
    ours = Authority.make(tmp_path / "other", "other CA").issue("shop")
    async with party(site.options(ours), Worker(tmp_path)) as made:
        await until(lambda: "not connected yet" not in made.link.detail, "an attempt")
        assert "does not lead to our CA" in made.link.detail


@pytest.mark.fault(51)
async def test_a_revoked_client_is_severed_at_once_and_its_durable_subscription_with_it(site: Site) -> None:
    boss, shop = site.identity(ORCHESTRATOR), site.identity("shop")
    command = "drengine/main/agent/shop/command"
    keep = aiomqtt.client.Properties(1)
    keep.SessionExpiryInterval = 3600
    async with site.client(boss) as orchestrating:
        await orchestrating.subscribe("drengine/#", 1)
        async with site.client(shop, "durable", 1.0, clean_start=False, properties=keep) as severed:
            await severed.subscribe(command, 1)
            await orchestrating.publish(command, b"before", 1)
            assert (await anext(aiter(severed.messages))).payload == b"before"
            site.acl.write_text(f"{site.acl.read_text()}\nuser shop\ntopic deny drengine/#\n")
            site.crl.write_bytes(crl(site.authority, shop))
            site.broker.reload()
            await orchestrating.publish(command, b"after", 1)
            await severed.publish("drengine/main/agent/shop/report", b"still here")
            await orchestrating.publish(command, b"end", 1)
            await orchestrating.publish("drengine/main/agent/end/command", b"", 1)
            found = await heard(orchestrating, "drengine/main/agent/end/command")
            assert (command, b"after") in found
            assert ("drengine/main/agent/shop/report", b"still here") not in found
            assert len(severed.messages) == 0
        with pytest.raises(aiomqtt.MqttError):
            async with site.client(shop, "durable", clean_start=False, properties=keep):
                raise AssertionError("a revoked certificate was let in")
    assert refused(site, client_context(shop))


async def test_a_burst_of_acknowledged_messages_reaches_a_slow_listener_whole(site: Site) -> None:
    shop, boss = site.identity("shop"), site.identity(ORCHESTRATOR)
    count = 3000
    async with site.client(boss) as slow, site.client(shop, max_inflight_messages=1000) as quick:
        await slow.subscribe("drengine/main/agent/shop/answer", 1)
        slow._loop.remove_reader(slow._client.socket())  # as if it were busy
        for begin in range(0, count, 500):
            await asyncio.gather(
                *(
                    quick.publish("drengine/main/agent/shop/answer", str(n).encode(), 1)
                    for n in range(begin, begin + 500)
                )
            )
        slow._on_socket_open(slow._client, None, slow._client.socket())
        found = []
        async with asyncio.timeout(30):
            async for message in slow.messages:
                found.append(int(message.payload))  # type: ignore[arg-type]
                if len(found) == count:
                    break
    assert sorted(found) == list(range(count))


async def test_a_flood_into_a_kept_session_fills_no_broker(site: Site) -> None:
    """A party may subscribe to its own topics, leave, and go on talking to itself."""
    shop, payload, count = site.identity("shop"), b"x" * (120 << 10), 1500
    kept = Properties(PacketTypes.CONNECT)
    kept.SessionExpiryInterval = 0xFFFFFFFF
    async with site.client(shop, "away", clean_start=True, properties=kept) as away:
        await away.subscribe("drengine/main/agent/shop/report", 1)
    before = site.broker.resident_bytes()
    async with site.client(shop, "flood", max_inflight_messages=100) as flood:
        for begin in range(0, count, 100):
            sent = [flood.publish("drengine/main/agent/shop/report", payload, 1) for _ in range(begin, begin + 100)]
            await asyncio.gather(*sent)
    grown = site.broker.resident_bytes() - before
    assert grown < count * len(payload) / 2, f"{grown >> 20} MiB"
    async with site.client(shop, "other") as other:
        await other.publish("drengine/main/agent/shop/report", b"{}", 1)  # it still serves


async def test_what_was_retained_outlives_the_broker(site: Site, tmp_path: Path) -> None:
    shop, boss = site.identity("shop"), site.identity(ORCHESTRATOR)
    async with party(site.options(shop), Worker(tmp_path)) as made:
        await until(lambda: made.link.is_connected)
    site.broker.stop()
    site.broker.start()
    async with orchestrator(site.options(boss)) as agents:
        report: AgentReport = agents.reports()["shop"]
        assert report.serving
        assert not agents.is_online("shop")


@pytest.mark.fault(50)
async def test_a_command_that_somebody_retained_is_never_obeyed(site: Site, tmp_path: Path) -> None:
    shop, boss = site.identity("shop"), site.identity(ORCHESTRATOR)
    worker = Worker(tmp_path)
    command = Command(id="stale", verb=Verb.SYNC, generation=1, expires_ns=(1 << 62))
    async with site.client(boss) as careless:
        await careless.publish("drengine/main/agent/shop/command", msgspec.json.encode(command), 1, retain=True)
    async with party(site.options(shop), worker) as made:
        await until(lambda: made.dispatcher.ignored["retained"], "the retained command")  # type: ignore[index]
    assert worker.done() == []


async def test_a_broker_beyond_loopback_without_tls_is_not_even_tried() -> None:
    options = BrokerOptions(address=Address("broker.example", 1883))
    with pytest.raises(DrengineError, match="needs certificate"):
        options.check("[control]")
