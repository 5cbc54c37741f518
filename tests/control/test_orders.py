"""Orders and answers that are signed: whoever is not the orchestrator commands nothing, whoever is not the party has
answered nothing, whatever the broker does with what it carries.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiomqtt
import msgspec
import pytest

from drengine.audit import AuditLog, Outcome
from drengine.audit.verify import read_entries
from drengine.control.agents import BrokerAgents
from drengine.control.foreign import Dropped
from drengine.control.gate import Gate, Policy, digest
from drengine.control.messages import Answer, Command, Verb
from drengine.control.refusals import REFUSALS
from drengine.control.seals import Purpose, Sealed, Seals
from drengine.identity.names import Identity, Role
from drengine.model.errors import DrengineError
from drengine.transport.tls import client_context
from tests.control.identities import BOSS, SHOP, Site, command, order
from tests.control.site import Mosquitto, Worker, free_port, options_for, orchestrator, party, until
from tests.control.test_dispatch import Desk

pytestmark = pytest.mark.timeout(120)
OTHER = Identity("main", Role.AGENT, "web")
COURIER = Identity("main", Role.HOST, "courier")


@dataclass
class Host:
    """The agent of source shop, with a clock of the test's."""

    site: Site
    desk: Desk

    @staticmethod
    async def make(folder: Path, **policy: Any) -> Host:
        site = Site.make(folder)
        desk = Desk(folder, now_ns=time.time_ns())
        gate = Gate(SHOP, Seals(site.files(SHOP), desk.clock), orders="signed", policy=Policy(**policy))
        desk.gate = gate
        return Host(site, await desk.open())

    async def takes(self, payload: bytes) -> str:
        """What it says of an order: `done`, or the code of its refusal."""
        self.desk.dispatcher.receive(payload, retained=False)
        await self.desk.rest()
        answer = self.desk.answers[-1]
        assert self.desk.answered[-1] == digest(payload)
        return answer.code or "done"

    @property
    def done(self) -> int:
        return sum(self.desk.done.values())


async def test_an_order_that_the_orchestrator_signed_is_carried_out_once(tmp_path: Path) -> None:
    host = await Host.make(tmp_path)
    payload = order(host.site.seals())
    assert await host.takes(payload) == "done"
    assert await host.takes(payload) == "done"  # replayed: the first answer again
    await host.desk.crash()
    assert await host.takes(payload) == "done"  # and after a restart
    assert host.done == 1


def _byte_changed(site: Site) -> bytes:
    return order(site.seals(), arguments={"generation": 3}).replace(b'{"generation":3}', b'{"generation":4}')


def _foreign(site: Site) -> Seals:
    """An orchestrator of another site whose CA is believed here as well."""
    there = Site.make(site.folder / "there", "elsewhere")
    for name in ("ca.pem", "crl.pem"):
        ours = site.authority.folder / name
        ours.write_bytes(ours.read_bytes() + (there.authority.folder / name).read_bytes())
    return there.seals(Identity("elsewhere", Role.ORCHESTRATOR, "orchestrator"))


def _revoked(site: Site) -> bytes:
    payload = order(site.seals())
    site.revoke(BOSS)
    return payload


FORGERIES: dict[str, Callable[[Site], bytes]] = {
    "order-unsigned": lambda site: msgspec.json.encode(command()),
    "order-signature": _byte_changed,
    "order-role": lambda site: order(site.seals(SHOP)),
    "order-site": lambda site: order(_foreign(site)),
    "order-addressee": lambda site: order(site.seals(), to=str(OTHER)),
    "order-certificate": lambda site: order(Site.make(site.folder / "stranger").seals()),
    "order-revoked": _revoked,
    "order-not-allowed": lambda site: order(site.seals(), id="s", verb=Verb.SYNC),
    "order-unapproved": lambda site: order(site.seals(), id="r", verb=Verb.REVERSE, arguments={"force": True}),
    "order-expired": lambda site: order(site.seals(), expires_ns=time.time_ns() - 60 * 10**9),
}


@pytest.mark.parametrize("code", FORGERIES)
async def test_whatever_else_comes_is_refused_by_its_id(tmp_path: Path, code: str) -> None:
    host = await Host.make(tmp_path, verbs=(Verb.FENCE, Verb.REVERSE))
    payload = FORGERIES[code](host.site)
    assert await host.takes(payload) == code
    assert REFUSALS[code].hint in host.desk.answers[-1].message
    assert not host.done
    assert host.desk.dispatcher.ignored[code] == 1
    if code != "order-revoked":
        assert await host.takes(order(host.site.seals(), id="another")) == "done"


def test_each_refusal_has_its_test() -> None:
    assert set(REFUSALS) == {*FORGERIES, "order-reused"}


async def test_one_bit_of_an_order_that_is_changed_makes_it_none(tmp_path: Path) -> None:
    host = await Host.make(tmp_path)
    host.desk.dispatcher._gate = gate = host.desk.gate
    payload = order(host.site.seals())
    begins, ends = payload.index(b'{"id"'), payload.index(b',"certificates"')
    assert gate is not None
    for at in range(begins, ends):
        changed = bytearray(payload)
        changed[at] ^= 1 << random.Random(at).randrange(7)
        try:
            found = gate.admit(bytes(changed))
        except Exception as error:  # noqa: BLE001 - refused, or no order at all
            assert type(error).__name__ in ("OrderRefusedError", "Unreadable", "ValueError"), error
        else:
            raise AssertionError(f"byte {at}: {found}")


async def test_an_order_of_an_older_generation_is_refused(tmp_path: Path) -> None:
    host = await Host.make(tmp_path)
    assert await host.takes(order(host.site.seals(), generation=2)) == "command-dropped"
    assert await host.takes(order(host.site.seals(), id="two", generation=4)) == "done"  # a fence may be newer


async def test_an_id_is_not_used_for_another_verb(tmp_path: Path) -> None:
    """Else who may have something harmless done could have the answer to a later fence ready."""
    host = await Host.make(tmp_path)
    assert await host.takes(order(host.site.seals(), verb=Verb.SYNC)) == "done"
    assert await host.takes(order(host.site.seals())) == "order-reused"
    assert host.done == 1


async def test_an_order_that_was_forgotten_is_too_old(tmp_path: Path) -> None:
    host = await Host.make(tmp_path)
    host.desk.log._capacity = 1
    payload = order(host.site.seals())
    assert await host.takes(payload) == "done"
    host.desk.clock.advance(60)
    assert await host.takes(order(host.site.seals(), id="two", expires_ns=time.time_ns() + 90 * 10**9)) == "done"
    host.desk.clock.jump_wall(-60)
    host.desk.dispatcher.receive(payload, retained=False)
    await host.desk.rest()
    assert host.desk.dispatcher.ignored["forgotten"] == 1
    await host.desk.crash()
    assert await host.takes(payload) == "done"  # the file had not been written anew: it is known by its id
    assert host.done == 2


@pytest.mark.parametrize("minutes", [10, -10])
async def test_a_clock_that_is_off_is_told(tmp_path: Path, minutes: int) -> None:
    host = await Host.make(tmp_path)
    host.desk.clock.jump_wall(minutes * 60)
    if minutes > 0:
        assert await host.takes(order(host.site.seals())) == "order-expired"
        assert re.search(r"5[0-9]{2}\.[0-9] s too late", host.desk.answers[-1].message)
        assert "clocks" in host.desk.answers[-1].message
    else:
        # Ours is behind: the order counts for longer, and is carried out once all the same.
        payload = order(host.site.seals())
        assert await host.takes(payload) == await host.takes(payload) == "done"
        assert host.done == 1


async def test_refusals_are_answered_now_and_then_only(tmp_path: Path) -> None:
    host = await Host.make(tmp_path)
    for number in range(100):
        host.desk.dispatcher.receive(msgspec.json.encode(command(id=str(number))), retained=False)
    await host.desk.rest()
    assert len(host.desk.answers) == 1
    assert host.desk.dispatcher.ignored["order-unsigned"] == 100


async def test_a_forced_reversal_names_its_approver(tmp_path: Path) -> None:
    host = await Host.make(tmp_path)
    given: dict[str, Any] = {"verb": Verb.REVERSE, "arguments": {"force": True}}
    assert await host.takes(order(host.site.seals(), **given)) == "order-unapproved"
    assert await host.takes(order(host.site.seals(), id="2", approver="person:ann", **given)) == "command-dropped"
    lenient = await Host.make(tmp_path / "lenient", approved_force=False)
    assert await lenient.takes(order(lenient.site.seals(), **given)) == "command-dropped"


async def test_renewed_files_count_from_the_next_order_on(tmp_path: Path) -> None:
    host = await Host.make(tmp_path)
    boss = host.site.seals()
    assert await host.takes(order(boss)) == "done"
    host.site.files(BOSS)  # takes the old one's place on disk
    assert await host.takes(order(boss, id="two")) == "done"
    host.site.revoke(BOSS)
    assert await host.takes(order(boss, id="three")) == "order-revoked"


def test_without_names_in_our_certificate_nothing_is_asked(tmp_path: Path) -> None:
    from drengine.model.clock import SystemClock
    from tests.transport.certificates import Authority as Foreign

    nameless = Seals(Foreign.make(tmp_path).issue("shop"), SystemClock())
    assert not Gate(SHOP, nameless, orders="auto").wants_signed
    assert Gate(SHOP, nameless, orders="signed").wants_signed
    assert Gate(SHOP, Site.make(tmp_path / "ours").seals(SHOP), orders="auto").wants_signed
    assert not Gate(SHOP, None, orders="auto").wants_signed


# ---- over a broker that is nobody's friend --------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.make(tmp_path)


def broker(site: Site, name: str) -> Mosquitto:
    """One that lets every certificate of the CA say anything."""
    folder, port = site.folder / name, free_port()
    folder.mkdir()
    files = site.files(Identity("main", Role.BROKER, name))
    text = (
        f"listener {port} 127.0.0.1\ncafile {files.ca}\ncertfile {files.certificate}\nkeyfile {files.key}\n"
        "user root\nrequire_certificate true\nuse_identity_as_username true\nmax_packet_size 200000\n"
    )
    made = Mosquitto(folder, text, port=port)
    made.start()
    return made


@pytest.fixture
def one(site: Site) -> AsyncIterator[Mosquitto]:
    made = broker(site, "one")
    yield made
    made.kill()


@pytest.fixture
def two(site: Site) -> AsyncIterator[Mosquitto]:
    made = broker(site, "two")
    yield made
    made.kill()


def client(site: Site, at: Mosquitto, identity: Identity = COURIER) -> aiomqtt.Client:
    return aiomqtt.Client(
        "127.0.0.1", at.port, protocol=aiomqtt.ProtocolVersion.V5, tls_context=client_context(site.files(identity))
    )


async def test_orders_are_signed_and_answers_believed_by_their_signature(
    site: Site, one: Mosquitto, tmp_path: Path
) -> None:
    worker = Worker(tmp_path)
    async with orchestrator(site.options(one.port, BOSS)) as agents, party(site.options(one.port, SHOP), worker):
        await until(lambda: agents.is_online("shop"))
        answer = await agents.command("shop", Verb.FENCE, {}, generation=1, id="one", timeout_seconds=30)
        assert answer == Answer(id="one", done=True, ok=True, result={"count": 1})


@pytest.mark.parametrize("identity", [OTHER, Identity("main", Role.HOST, "rack")])
async def test_whoever_is_no_orchestrator_learns_that_it_commands_nothing(
    site: Site, one: Mosquitto, tmp_path: Path, identity: Identity
) -> None:
    worker = Worker(tmp_path)
    async with orchestrator(site.options(one.port, identity)) as agents, party(site.options(one.port, SHOP), worker):
        await until(lambda: agents.is_online("shop"))
        answer = await agents.command("shop", Verb.FENCE, {}, generation=1, id="one", timeout_seconds=30)
        assert (answer.ok, answer.code) == (False, "order-role")
    assert not worker.done()


async def answers(site: Site, at: Mosquitto, forge: Callable[[str, bytes], bytes]) -> None:
    """Answer each order to shop before shop does, in its name."""
    async with client(site, at, OTHER) as imposter:
        await imposter.subscribe("drengine/main/agent/shop/command")
        async for message in imposter.messages:
            assert isinstance(message.payload, bytes)
            said = msgspec.json.decode(bytes(msgspec.json.decode(message.payload, type=Sealed).signed), type=Command)
            await imposter.publish("drengine/main/agent/shop/answer", forge(said.id, message.payload), qos=1)


@pytest.mark.parametrize("kind", ["unsigned", "another", "unbound"])
async def test_an_answer_of_somebody_else_is_none(site: Site, one: Mosquitto, tmp_path: Path, kind: str) -> None:
    seals, own = site.seals(OTHER), site.seals(SHOP)

    def forge(id: str, payload: bytes) -> bytes:
        asked = digest(b"an older order") if kind == "unbound" else digest(payload)
        said = msgspec.json.encode(Answer(id=id, done=True, ok=True, result={"fenced": "so they say"}, order=asked))
        match kind:
            case "unsigned":
                return said
            case "another":
                return seals.seal(Purpose.ANSWER, said)
            case _:
                return own.seal(Purpose.ANSWER, said)  # shop's own, replayed: to another order of that id

    imposter = asyncio.create_task(answers(site, one, forge))
    try:
        async with orchestrator(site.options(one.port, BOSS)) as agents:
            with pytest.raises(DrengineError) as error:
                await agents.command("shop", Verb.FENCE, {}, generation=1, id="fence", timeout_seconds=3)
            assert error.value.kind.id == "no-answer"
            if kind != "unbound":
                assert "not believed" in error.value.message
                assert agents.dropped[Dropped.UNSIGNED if kind == "unsigned" else Dropped.SIGNATURE] >= 1
            worker = Worker(tmp_path)
            async with party(site.options(one.port, SHOP), worker):
                answer = await agents.command("shop", Verb.FENCE, {}, generation=1, id="fence", timeout_seconds=30)
                assert answer.result == {"count": 1}
    finally:
        imposter.cancel()
        await asyncio.gather(imposter, return_exceptions=True)


async def test_orders_and_answers_that_are_not_believed_are_in_the_audit_log(
    site: Site, one: Mosquitto, tmp_path: Path
) -> None:
    seals = site.seals(OTHER)

    def forge(id: str, payload: bytes) -> bytes:
        said = msgspec.json.encode(Answer(id=id, done=True, ok=True, order=digest(payload)))
        return seals.seal(Purpose.ANSWER, said)

    audit = AuditLog.open(tmp_path / "audit")
    imposter = asyncio.create_task(answers(site, one, forge))
    try:
        async with orchestrator(site.options(one.port, BOSS), audit=audit) as agents:
            with pytest.raises(DrengineError, match="not believed"):
                await agents.command(
                    "shop", Verb.FENCE, {}, generation=1, id="1", timeout_seconds=6, approver="person:ann"
                )
            async with party(site.options(one.port, SHOP), Worker(tmp_path)):
                await agents.command("shop", Verb.FENCE, {}, generation=1, id="2", timeout_seconds=30)
                await agents.command("shop", Verb.STATUS, {}, generation=1, id="3", timeout_seconds=30)
    finally:
        imposter.cancel()
        await asyncio.gather(imposter, return_exceptions=True)
    entries = [line.entry for line in read_entries(tmp_path / "audit")]
    told = {(each.who, each.proved, each.did, each.on, each.outcome, each.error) for each in entries}
    assert (str(BOSS), "signature", "order.fence", str(SHOP), Outcome.DONE, "") in told
    assert (str(SHOP), "signature", "answer.fence", "2", Outcome.DONE, "") in told
    assert ("anybody", "", "answer", "drengine/main/agent/shop/answer", Outcome.REFUSED, "signature") in told
    assert not any("status" in each.did for each in entries)
    assert any(each.details.get("approver") == "person:ann" for each in entries)


async def test_an_order_is_no_answer_and_an_answer_no_order(site: Site) -> None:
    """A signature is for one purpose: else what one party says could be played back to it, or to another."""
    said = msgspec.json.encode(command())
    gate = Gate(SHOP, site.seals(SHOP), orders="signed")
    with pytest.raises(Exception, match="signature"):
        gate.admit(site.seals().seal(Purpose.ANSWER, said))


class Courier:
    """Between two brokers: what the one is told, it tells the other, later, twice, in another order, or changed."""

    def __init__(self, site: Site, one: Mosquitto, two: Mosquitto, seed: int) -> None:
        self._site, self._one, self._two = site, one, two
        self._random = random.Random(seed)
        self._kept: list[bytes] = []
        self.altered = 0

    async def run(self) -> None:
        async with client(self._site, self._one) as one, client(self._site, self._two) as two:
            await one.subscribe("drengine/+/+/+/command", qos=1)
            for leaf in ("answer", "report", "presence"):
                await two.subscribe(f"drengine/+/agent/+/{leaf}", qos=1)
            await asyncio.gather(self._carry(one, two), self._carry(two, one))

    async def _carry(self, here: aiomqtt.Client, there: aiomqtt.Client) -> None:
        async for message in here.messages:
            assert isinstance(message.payload, bytes)
            signed = message.topic.value.rsplit("/", 1)[1] in ("command", "answer")
            for payload in self._mangled(message.payload) if signed else [message.payload]:
                await there.publish(message.topic.value, payload, qos=1, retain=message.retain)

    def _mangled(self, payload: bytes) -> list[bytes]:
        self._kept = [*self._kept[-20:], payload]
        sent = [payload, *self._random.choices(self._kept, k=2)]
        changed = bytearray(payload)
        changed[self._random.randrange(len(changed))] ^= 1 << self._random.randrange(8)
        if bytes(changed) != payload:
            self.altered += 1
        sent.insert(0, bytes(changed))
        self._random.shuffle(sent)
        return sent[: self._random.randrange(1, 5)]


@pytest.mark.parametrize("seed", range(3))
async def test_a_broker_that_alters_repeats_and_reorders_does_no_more_than_delay(
    site: Site, one: Mosquitto, two: Mosquitto, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drengine.control.agents.ASK_AGAIN_SECONDS", 0.1)
    worker, courier = Worker(tmp_path), Courier(site, one, two, seed)
    carrying = asyncio.create_task(courier.run())
    try:
        async with BrokerAgents(site.options(one.port, BOSS)) as agents, party(site.options(two.port, SHOP), worker):
            await until(lambda: agents.is_online("shop"))
            for number in range(12):
                answer = await agents.command(
                    "shop", Verb.CUT, {"label": f"l{number}"}, generation=1, id=str(number), timeout_seconds=60
                )
                assert answer.result == {"count": number + 1, "label": f"l{number}"}
        assert worker.done() == [str(number) for number in range(12)]
        assert courier.altered > 10
    finally:
        carrying.cancel()
        await asyncio.gather(carrying, return_exceptions=True)


async def test_where_anything_is_believed_a_plain_order_is_carried_out(tmp_path: Path) -> None:
    """The quickstart: no certificates, one machine."""
    server = Mosquitto(tmp_path)
    server.start()
    try:
        worker = Worker(tmp_path)
        async with orchestrator(options_for(server.port)) as agents, party(options_for(server.port), worker):
            await until(lambda: agents.is_online("shop"))
            answer = await agents.command("shop", Verb.FENCE, {}, generation=1, id="one", timeout_seconds=30)
            assert answer.ok
    finally:
        server.kill()
