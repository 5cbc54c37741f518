"""The embedded broker: each party says and hears its own, strangers are not let in, and nobody starves others."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiomqtt
import msgspec
import pytest

from drengine.config import Address
from drengine.control import broker as broker_module
from drengine.control import clients as clients_module
from drengine.control.broker import STRANGERS_MAX, EmbeddedBroker
from drengine.control.config import BrokerOptions
from drengine.control.message import PACKET_BYTES_MAX, Message
from drengine.control.messages import Verb
from drengine.control.packets import PacketError, Reason, connack, parse
from drengine.control.rights import matches, may_publish, may_subscribe
from drengine.control.router import CLIENTS_PER_IDENTITY_MAX
from drengine.identity.names import Identity, Role
from drengine.model.errors import DrengineError
from drengine.transport.files import TlsFiles
from drengine.transport.tls import client_context
from tests.control.identities import BOSS, SHOP, Site, command
from tests.control.site import Worker, free_port, options_for, orchestrator, party, until

pytestmark = pytest.mark.timeout(120)
RACK = Identity("main", Role.HOST, "rack")
WEB = Identity("main", Role.AGENT, "web")
NOBODY = 65534
LEAVES = ("presence", "report", "answer", "command")
TOPICS = [
    f"drengine/{site}/{kind}/{name}/{leaf}"
    for site, (kind, name), leaf in itertools.product(
        ("main", "other"),
        (("agent", "shop"), ("agent", "web"), ("host", "rack"), ("host", "shop"), ("orchestrator", "0a")),
        LEAVES,
    )
] + ["drengine/main/agent/shop", "$SYS/x", "anything", "drengine/main/agent/shop/command/more"]
ALLOWED = {
    SHOP: {f"drengine/main/agent/shop/{leaf}" for leaf in ("presence", "report", "answer")},
    RACK: {f"drengine/main/host/rack/{leaf}" for leaf in ("presence", "report", "answer")},
    BOSS: {f"drengine/main/{each}/command" for each in ("agent/shop", "agent/web", "host/rack", "host/shop")}
    | {"drengine/main/orchestrator/0a/presence"},
    Identity("main", Role.TARGET, "outpost"): set(),
}
HEARD = {
    SHOP: {f"drengine/main/agent/shop/{leaf}" for leaf in ("presence", "report", "command")},
    RACK: {f"drengine/main/host/rack/{leaf}" for leaf in ("presence", "report", "command")},
    BOSS: {topic for topic in TOPICS if topic.startswith("drengine/main/")},
}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.make(tmp_path)


@contextlib.asynccontextmanager
async def listening(site: Site | None, **more: Any) -> AsyncIterator[EmbeddedBroker]:
    files = site.files(Identity("main", Role.BROKER, "embedded")) if site else None
    broker = EmbeddedBroker(Address("127.0.0.1", free_port()), files=files, **more)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


def client(broker: EmbeddedBroker, files: TlsFiles | None, client_id: str = "") -> aiomqtt.Client:
    return aiomqtt.Client(
        "127.0.0.1",
        broker.address.port,
        identifier=client_id or None,
        protocol=aiomqtt.ProtocolVersion.V5,
        tls_context=client_context(files) if files else None,
        timeout=5,
    )


def test_who_may_say_and_hear_what() -> None:
    for who, topics in ALLOWED.items():
        assert {topic for topic in TOPICS if may_publish(who, topic)} == topics
    for who, topics in HEARD.items():
        assert {topic for topic in TOPICS if may_subscribe(who, topic)} == topics
        assert not may_subscribe(who, "#")
        assert not may_subscribe(who, "$share/a/drengine/main/agent/shop/command")
    for filter in (
        "drengine/main/agent/shop/+",
        "drengine/main/agent/+/command",
        "drengine/main/#",
        "+/main/agent/shop/report",
    ):
        assert not may_subscribe(SHOP, filter)
    assert may_subscribe(BOSS, "drengine/main/+/+/report")
    assert not may_subscribe(BOSS, "drengine/+/+/+/report")


def test_filters_let_through_what_mqtt_says() -> None:
    assert matches("a/+/c", "a/b/c") and matches("a/#", "a/b/c") and matches("#", "a") and matches("a/b", "a/b")
    for filter, topic in (("a/+", "a/b/c"), ("a/b/c", "a/b"), ("a/b", "a/b/c"), ("+", "a/b"), ("a/b/+", "a/b")):
        assert not matches(filter, topic)


async def test_each_party_says_its_own_and_nothing_else(site: Site) -> None:
    async with listening(site) as broker, client(broker, site.files(BOSS)) as boss:
        await boss.subscribe("drengine/main/#", qos=1)
        for who in (SHOP, RACK):
            async with client(broker, site.files(who)) as speaker:
                for topic in TOPICS:
                    await speaker.publish(topic, str(who).encode(), qos=1)
        async with client(broker, site.files(BOSS, file="second")) as other:
            for topic in TOPICS:
                await other.publish(topic, str(BOSS).encode(), qos=1)
            await other.publish("drengine/main/orchestrator/end/presence", b"end", qos=1)
        heard = set()
        async with asyncio.timeout(10):
            async for message in boss.messages:
                if message.payload == b"end":
                    break
                heard.add((bytes(message.payload), message.topic.value))  # type: ignore[arg-type]
    assert heard == {(str(who).encode(), topic) for who in (SHOP, RACK, BOSS) for topic in ALLOWED[who]}


async def test_each_party_hears_its_own_and_nothing_else(site: Site) -> None:
    async with listening(site) as broker, client(broker, site.files(SHOP)) as shop:
        for topic in (*TOPICS, "#", "+/+/+/+/+", "drengine/main/agent/+/command", "$share/a/#"):
            with contextlib.suppress(aiomqtt.MqttError):
                await shop.subscribe(topic, qos=1)
        async with client(broker, site.files(BOSS)) as boss, client(broker, site.files(WEB)) as web:
            for topic in TOPICS:
                await boss.publish(topic, b"from boss", qos=1)
                await web.publish(topic, b"from web", qos=1)
            await boss.publish("drengine/main/agent/shop/command", b"end", qos=1)
        heard = []
        async with asyncio.timeout(10):
            async for message in shop.messages:
                if message.payload == b"end":
                    break
                heard.append((message.topic.value, message.payload))
        assert heard == [("drengine/main/agent/shop/command", b"from boss")]
        assert broker.router.refused > 2 * len(TOPICS)


async def test_a_will_is_said_only_by_whom_it_is_about(site: Site) -> None:
    async with listening(site) as broker:
        mine = client(broker, site.files(SHOP))
        for topic, is_taken in (
            ("drengine/main/agent/shop/presence", True),
            ("drengine/main/agent/web/presence", False),
        ):
            mine = aiomqtt.Client(
                "127.0.0.1", broker.address.port, protocol=aiomqtt.ProtocolVersion.V5, timeout=5,
                tls_context=client_context(site.files(SHOP)), will=aiomqtt.Will(topic, b"{}", 1),
            )  # fmt: skip
            if is_taken:
                async with mine:
                    pass
            else:
                with pytest.raises(aiomqtt.MqttError):
                    await mine.__aenter__()


async def test_who_has_no_name_of_this_site_is_not_let_in(site: Site, tmp_path: Path) -> None:
    elsewhere = Site.make(tmp_path / "elsewhere", "other")
    async with listening(site) as broker:
        for files in (
            site.files(Identity("main", Role.TARGET, "outpost")),
            elsewhere.files(Identity("other", Role.ORCHESTRATOR, "orchestrator")),
        ):
            with pytest.raises((aiomqtt.MqttError, OSError)):
                async with client(broker, TlsFiles(files.certificate, files.key, site.files().ca)):
                    pass


async def test_who_is_revoked_is_ended_within_seconds(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "REVOKED_SECONDS", 0.05)
    async with listening(site) as broker:
        with pytest.raises(aiomqtt.MqttError):
            async with client(broker, site.files(SHOP)) as shop:
                await shop.subscribe("drengine/main/agent/shop/command")
                site.revoke(SHOP)
                async with asyncio.timeout(5):
                    async for _ in shop.messages:
                        pass
        with pytest.raises((aiomqtt.MqttError, OSError)):
            async with client(
                broker, TlsFiles(*(site.folder / f"agent-shop.{end}" for end in ("pem", "key")), site.files().ca)
            ):
                pass


async def test_the_whole_works_over_it_with_signed_orders(site: Site, tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    async with listening(site) as broker:
        port = broker.address.port
        async with orchestrator(site.options(port, BOSS)) as agents, party(site.options(port, SHOP), worker):
            await until(lambda: agents.is_online("shop"))
            answer = await agents.command("shop", Verb.FENCE, {}, generation=1, id="one", timeout_seconds=30)
            assert answer.ok
            assert broker.router.refused == 0


# ---- without certificates --------------------------------------------------------------------------------------------


STRANGER = """
import encodings.idna, os, socket, sys
os.setgid(65534)
os.setuid(65534)
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 10) as sock:
    for packet in sys.argv[2:]:
        sock.sendall(bytes.fromhex(packet))
    sock.settimeout(2)
    try:
        while data := sock.recv(65536):
            print(data.hex(), end="")
    except OSError:
        pass
"""


def as_nobody(port: int, *packets: bytes) -> bytes:
    """What a broker says to another local user's process that sends these."""
    words = [sys.executable, "-c", STRANGER, str(port), *(each.hex() for each in packets)]
    return bytes.fromhex(subprocess.run(words, capture_output=True, text=True, timeout=30, check=True).stdout)


def text(value: str) -> bytes:
    return len(value).to_bytes(2) + value.encode()


def packet(first: int, body: bytes) -> bytes:
    high, low = divmod(len(body), 128)
    return bytes([first, *([low | 0x80, high] if high else [low])]) + body


def connect(client_id: str) -> bytes:
    return packet(0x10, text("MQTT") + b"\x05\x02\0\0\0" + text(client_id))


def subscribe(filter: str) -> bytes:
    return packet(0x82, b"\0\x01\0" + text(filter) + b"\0")


def publish(topic: str, payload: bytes) -> bytes:
    return packet(0x30, text(topic) + b"\0" + payload)


@pytest.mark.parametrize("client_id", ["orchestrator-0a", "agent-shop-0a", "mosq", ""])
async def test_another_local_user_commands_nobody(tmp_path: Path, client_id: str) -> None:
    """The attack: any local user published commands through the embedded broker, and a host ran them as root."""
    worker = Worker(tmp_path)
    async with listening(None) as broker:
        port = broker.address.port
        options, plain = options_for(port), msgspec.json.encode(command(verb=Verb.SYNC, generation=1))
        async with orchestrator(options) as agents, party(options, worker):
            await until(lambda: agents.is_online("shop"))
            order = publish("drengine/main/agent/shop/command", plain)
            said = await asyncio.to_thread(as_nobody, port, connect(client_id), subscribe("drengine/main/#"), order)
            assert said in (connack(Reason.NOT_AUTHORIZED, packet_max=PACKET_BYTES_MAX), b"")
            assert (await agents.command("shop", Verb.CUT, {}, generation=1, id="own", timeout_seconds=30)).ok
    assert worker.done() == ["own"]


async def test_a_user_who_is_named_is_let_in() -> None:
    async with listening(None, local_users=["nobody"]) as broker:
        said = await asyncio.to_thread(as_nobody, broker.address.port, connect("agent-shop-0a"))
        assert said == connack(Reason.SUCCESS, packet_max=PACKET_BYTES_MAX)


async def test_a_broker_of_another_local_user_is_not_believed(tmp_path: Path) -> None:
    """While ours is down somebody may listen on its port, and would be obeyed."""
    port = free_port()
    configuration = tmp_path / "mosquitto.conf"
    configuration.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    imposter = subprocess.Popen(  # noqa: ASYNC220 - it goes on beside us
        ["mosquitto", "-c", "/dev/stdin"], stdin=configuration.open(), user=NOBODY, group=NOBODY, extra_groups=[]
    )
    try:
        async with party(options_for(port), Worker(tmp_path)) as made:
            await until(lambda: "process of user" in made.link.detail)
            assert f"user {NOBODY}" in made.link.detail
            assert made.link.connections == 0
        async with party(options_for(port, local_users=("nobody",)), Worker(tmp_path)) as made:
            await until(lambda: made.link.is_connected)
    finally:
        imposter.kill()
        imposter.wait()


async def test_without_certificates_each_says_who_it_is_and_is_held_to_it() -> None:
    async with listening(None) as broker:
        async with client(broker, None, "orchestrator-0a") as boss, client(broker, None, "agent-shop-0a") as shop:
            await boss.subscribe("drengine/main/#", qos=1)
            for topic in TOPICS:
                await shop.publish(topic, b"shop", qos=1)
            await boss.publish("drengine/main/orchestrator/0a/presence", b"end", qos=1)
            heard = set()
            async with asyncio.timeout(10):
                async for message in boss.messages:
                    if message.payload == b"end":
                        break
                    heard.add(message.topic.value)
            assert heard == ALLOWED[SHOP]
        with pytest.raises(aiomqtt.MqttError):
            async with client(broker, None, "anything"):
                pass


# ---- nobody starves others -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def silent(port: int, count: int) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        yield


async def test_connections_that_say_nothing_keep_nobody_out(tmp_path: Path) -> None:
    async with listening(None) as broker:
        options = options_for(broker.address.port)
        with silent(broker.address.port, 300):
            async with orchestrator(options) as agents, party(options, Worker(tmp_path)):
                await until(lambda: agents.is_online("shop"))


async def test_connections_that_say_nothing_are_as_many_as_may_be() -> None:
    """Also where they come faster than those that make way end."""
    async with listening(None) as broker:
        with contextlib.ExitStack() as stack:
            address = ("127.0.0.1", broker.address.port)
            crowd = [stack.enter_context(socket.create_connection(address, 60)) for _ in range(3 * STRANGERS_MAX)]
            for each in crowd[: 2 * STRANGERS_MAX]:
                with contextlib.suppress(ConnectionResetError):
                    assert each.recv(1) == b""


async def test_one_identity_has_not_all_places() -> None:
    async with listening(None) as broker, contextlib.AsyncExitStack() as stack:
        for number in range(CLIENTS_PER_IDENTITY_MAX):
            await stack.enter_async_context(client(broker, None, f"agent-shop-{number}"))
        with pytest.raises(aiomqtt.MqttError):
            await client(broker, None, "agent-shop-more").__aenter__()
        await stack.enter_async_context(client(broker, None, "agent-web-0"))


async def test_a_client_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients_module, "QUEUED_BYTES_MAX", 1 << 20)
    async with listening(None) as broker, client(broker, None, "agent-shop-1") as shop:
        deaf = socket.create_connection(("127.0.0.1", broker.address.port))
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(connect("orchestrator-deaf") + subscribe("drengine/main/+/+/report"))
        await until(lambda: len(broker.router.clients) == 2)
        for _ in range(100):
            await shop.publish("drengine/main/agent/shop/report", bytes(100_000), qos=0)
            if len(broker.router.clients) == 1:
                break
        await until(lambda: len(broker.router.clients) == 1, "the end of it")
        deaf.close()
        await shop.publish("drengine/main/agent/shop/report", b"{}", qos=1)


async def test_messages_come_in_the_order_in_which_they_were_said(site: Site) -> None:
    async with (
        listening(site) as broker,
        client(broker, site.files(BOSS)) as boss,
        client(broker, site.files(SHOP)) as shop,
        asyncio.timeout(20),
    ):
        await boss.subscribe([("drengine/main/+/+/report", 1), ("drengine/main/+/+/answer", 1)])
        for number in range(500):
            leaf = "report" if number % 3 else "answer"
            await shop.publish(f"drengine/main/agent/shop/{leaf}", str(number).encode(), qos=1)
        heard: list[int] = []
        async for message in boss.messages:
            heard.append(int(bytes(message.payload)))  # type: ignore[arg-type]
            if heard[-1] == 499:
                break
        assert heard == list(range(500))


async def test_noise_ends_only_whoever_makes_it(tmp_path: Path) -> None:
    choose = random.Random(11)
    sample = connect("agent-shop-noise")
    async with listening(None) as broker:
        options = options_for(broker.address.port)
        async with orchestrator(options) as agents, party(options, Worker(tmp_path)):
            await until(lambda: agents.is_online("shop"))
            for _ in range(400):
                noise = bytearray(sample + choose.randbytes(choose.randrange(60)))
                for _ in range(choose.randrange(3)):
                    noise[choose.randrange(len(noise))] = choose.randrange(256)
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", broker.address.port)) as sock:
                    sock.sendall(bytes(noise))
            assert (await agents.command("shop", Verb.CUT, {}, generation=1, id="1", timeout_seconds=30)).ok


def test_whatever_is_no_packet_is_called_so() -> None:
    choose = random.Random(5)
    for _ in range(20_000):
        with contextlib.suppress(PacketError):
            parse(choose.randrange(256), choose.randbytes(choose.randrange(64)))


async def test_a_flood_of_one_client_leaves_others_their_answers(tmp_path: Path) -> None:
    async with listening(None) as broker:
        options: BrokerOptions = options_for(broker.address.port)
        async with orchestrator(options) as agents, party(options, Worker(tmp_path)) as made:
            await until(lambda: agents.is_online("shop"))
            async with client(broker, None, "agent-web-0") as web:
                ended = asyncio.Event()

                async def flood() -> None:
                    while not ended.is_set():  # wait_for, inside of `publish`, may swallow that it is cancelled
                        await web.publish("drengine/main/agent/web/answer", bytes(2000), qos=0)

                flooding = asyncio.create_task(flood())
                begun = time.monotonic()
                for number in range(5):
                    assert (
                        await agents.command("shop", Verb.CUT, {}, generation=1, id=str(number), timeout_seconds=30)
                    ).ok
                assert time.monotonic() - begun < 10
                ended.set()
                flooding.cancel()
                await asyncio.gather(flooding, return_exceptions=True)
            with contextlib.suppress(DrengineError):
                await made.link.publish(Message("drengine/main/agent/shop/report", b"{}"))
