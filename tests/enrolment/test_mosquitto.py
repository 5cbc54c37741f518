"""A real Mosquitto with the files that are written from who is enrolled: they follow the authority by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiomqtt
import pytest
from cryptography import x509

from drengine.config import Address
from drengine.control.config import BrokerOptions
from drengine.enrolment.client import renew
from drengine.enrolment.keeper import keeping
from drengine.enrolment.messages import EnrolledParty
from drengine.enrolment.mosquitto import ACL_FILE, Broker, Follower, access_list, configuration, write_file
from drengine.enrolment.place import Place
from drengine.identity.names import Role
from drengine.model.clock import SystemClock
from drengine.transport.files import TlsFiles
from drengine.transport.tls import client_context
from tests.control.site import Mosquitto, Worker, free_port, orchestrator, party
from tests.enrolment.site import Site, serving, until

pytestmark = pytest.mark.timeout(120)
PROMISED_SECONDS = 5.0


@dataclass
class Brokered:
    """An authority, and a broker that follows it."""

    site: Site
    broker: Mosquitto
    place: Place
    acl: Path

    def options(self, place: Place) -> BrokerOptions:
        address = Address("127.0.0.1", self.broker.port)
        return BrokerOptions(
            address=address, certificate=place.files.certificate, key=place.files.key, ca=place.files.ca
        )

    def client(self, place: Place) -> aiomqtt.Client:
        return aiomqtt.Client(
            "127.0.0.1",
            self.broker.port,
            protocol=aiomqtt.ProtocolVersion.V5,
            tls_context=client_context(place.files),
            timeout=5.0,
        )


@contextlib.asynccontextmanager
async def brokered(tmp_path: Path, *, severs: bool = False) -> AsyncIterator[Brokered]:
    async with serving(tmp_path) as site:
        place = await site.joined("broker", Role.BROKER, hosts=("127.0.0.1",))
        acl, port = place.folder / ACL_FILE, free_port()
        write_file(acl, access_list("main", ()))
        text = configuration(place.folder, port=port).replace("/var/lib/mosquitto/", f"{tmp_path}/")
        pid_file = tmp_path / "mosquitto.pid"
        text = text.replace(f"listener {port}", f"user root\npid_file {pid_file}\nlistener {port} 127.0.0.1")
        broker = Mosquitto(tmp_path, text, port=port)
        await asyncio.to_thread(broker.start)
        await until(pid_file.exists)
        restart = tmp_path / "restart"
        asked = (sys.executable, "-c", f"open({str(restart)!r}, 'a').write('x')")
        follower = Follower(place, Broker(acl, pid_file, sever=asked if severs else ()), SystemClock())
        running = asyncio.create_task(follower.run())
        try:
            yield Brokered(site, broker, place, acl)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            broker.kill()


async def test_who_enrols_is_let_in_and_who_is_revoked_is_put_out_within_five_seconds(tmp_path: Path) -> None:
    async with brokered(tmp_path) as there:
        shop, boss = await there.site.joined("shop"), await there.site.joined("boss", Role.ORCHESTRATOR)
        begun = time.monotonic()
        await until(lambda: "user shop" in there.acl.read_text() and "user boss" in there.acl.read_text())
        (tmp_path / "worker").mkdir()
        async with (
            party(there.options(shop), Worker(tmp_path / "worker")),
            orchestrator(there.options(boss)) as agents,
        ):
            await until(lambda: agents.is_online("shop") and "shop" in agents.reports())
            assert time.monotonic() - begun < 2 * PROMISED_SECONDS
            mill = await there.site.joined("mill")
            await until(lambda: "user mill" in there.acl.read_text())
            before = agents.reports()["shop"].sequence
            await until(lambda: agents.reports()["shop"].sequence > before)  # nobody was disturbed
            async with there.client(boss) as watching, there.client(shop) as severed, there.client(mill) as kept:
                await watching.subscribe("drengine/#", 1)
                await severed.publish("drengine/main/agent/shop/answer", b"before", 1)
                begun = time.monotonic()
                there.site.revoke("shop")
                await until(lambda: "user shop" not in there.acl.read_text())
                await until(lambda: refused(there.broker.port, shop.files))
                assert time.monotonic() - begun < PROMISED_SECONDS
                with contextlib.suppress(aiomqtt.MqttError):
                    await severed.publish("drengine/main/agent/shop/answer", b"after", 1)
                await kept.publish("drengine/main/agent/mill/answer", b"end", 1)
                assert b"after" not in await answers(watching, b"end")


async def answers(client: aiomqtt.Client, end: bytes) -> list[object]:
    found: list[object] = []
    async with asyncio.timeout(10):
        async for message in client.messages:
            if message.payload == end:
                return found
            if message.topic.value.endswith("/answer"):
                found.append(message.payload)
    raise AssertionError("the connection ended")


def refused(port: int, files: TlsFiles) -> bool:
    connect = b"\x10\x11\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x04shop"
    try:
        with (
            socket.create_connection(("127.0.0.1", port), 10) as plain,
            client_context(files).wrap_socket(plain, server_hostname="127.0.0.1") as stream,
        ):
            stream.sendall(connect)
            return stream.recv(1) == b""
    except (ssl.SSLError, ConnectionError):
        return True


async def test_the_brokers_own_certificate_is_renewed_without_a_connection_lost(tmp_path: Path) -> None:
    async with brokered(tmp_path) as there:
        shop = await there.site.joined("shop")
        await until(lambda: "user shop" in there.acl.read_text())
        (tmp_path / "worker").mkdir()
        async with party(there.options(shop), Worker(tmp_path / "worker")) as made:
            await until(lambda: made.link.is_connected)
            await renew(there.place, clock=SystemClock())
            serial = there.place.certificate().serial_number
            there.broker.reload()  # what the follower has done when it was it who renewed
            await until(lambda: shown(there.broker.port, shop.files) == serial)
            assert made.link.connections == 1


def shown(port: int, files: TlsFiles) -> int:
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        client_context(files).wrap_socket(plain, server_hostname="127.0.0.1") as stream,
    ):
        return x509.load_der_x509_certificate(stream.getpeercert(binary_form=True) or b"").serial_number


async def test_a_command_may_end_all_connections_when_somebody_is_revoked(tmp_path: Path) -> None:
    async with brokered(tmp_path, severs=True) as there:
        await there.site.joined("shop")
        await until(lambda: "user shop" in there.acl.read_text())
        assert not (tmp_path / "restart").exists()
        there.site.revoke("shop")
        await until((tmp_path / "restart").exists)


async def test_an_orchestrator_leaves_a_broker_that_is_revoked(tmp_path: Path) -> None:
    async with brokered(tmp_path) as there:
        boss = await there.site.joined("boss", Role.ORCHESTRATOR)
        await until(lambda: "user boss" in there.acl.read_text())
        async with (
            orchestrator(there.options(boss)) as agents,
            keeping([each.files for each in agents.credentials], SystemClock(), agents.reload),
        ):
            begun = time.monotonic()
            there.site.revoke("broker", Role.BROKER)
            await until(lambda: not agents.link.is_connected)
            assert time.monotonic() - begun < PROMISED_SECONDS
            await until(lambda: "revoked" in agents.link.detail)


def test_a_name_of_several_roles_opens_nothing() -> None:
    parties = [EnrolledParty(role, "shop") for role in (Role.AGENT, Role.HOST)]
    parties += [EnrolledParty(Role.AGENT, "mill"), EnrolledParty(Role.TARGET, "mill")]
    text = access_list("main", parties)
    assert "user shop" not in text and "user mill" in text
    assert "topic write drengine/main/agent/mill/report" in text and "drengine/main/host" not in text
