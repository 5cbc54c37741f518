"""The orchestrator's side: what the parties last said, and commands to them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec

from drengine.audit import AuditLog
from drengine.control.config import BrokerOptions
from drengine.control.errors import BROKER_UNREACHABLE, NO_ANSWER
from drengine.control.foreign import Dropped, Drops, Unreadable, decode
from drengine.control.gate import digest, wants_signed
from drengine.control.link import Link
from drengine.control.message import Message
from drengine.control.messages import AgentReport, Answer, Command, PartyKind, Presence, Verb
from drengine.control.seals import BadSealError, Purpose, Sealed, Seals, unsealed
from drengine.control.topics import HEARD_BY_ORCHESTRATORS, Leaf, Topic, everyone, parse_topic
from drengine.control.witness import OrderWitness
from drengine.identity.names import Identity, Role
from drengine.model.clock import Clock, SystemClock
from drengine.model.errors import DrengineError
from drengine.transport.credentials import Credentials

log = logging.getLogger("drengine.control")

CONNECT_SECONDS = 3.0
ASK_AGAIN_SECONDS = 2.0
PROVE_SECONDS = 1.0
LOOK_SECONDS = 0.5
ABSENT_SECONDS, SOURCE_ABSENT_SECONDS = 10.0, 120.0
"""A party that the broker has not seen for so long is not waited for; a source's agent may be rebooting."""
PARTIES_MAX = 10_000
HOST_VERBS = frozenset({Verb.ATTACH, Verb.DETACH, Verb.HYDRATE, Verb.CHECK})

OnAnswer = Callable[[Answer], None]


@dataclass(slots=True)
class _Known:
    """What is known of one party. `report_at`: monotonic moment at which the report came to us."""

    kind: PartyKind
    report: AgentReport | None = None
    report_at: float = 0.0
    presence: Presence | None = None


@dataclass(slots=True, eq=False)
class _Waiting:
    """Somebody waits for the answer to an order.

    Attributes:
        topic: to which it was given.
        order: names its bytes.
        answered: the answer.
        progress: is given what comes before.
        doubt: why an answer that came was not believed.
    """

    topic: Topic
    order: str
    answered: asyncio.Future[Answer]
    progress: OnAnswer
    doubt: str = ""


class BrokerAgents:
    """The parties of one site, over the broker. Belongs to the event loop in which it was started.

    Use as ``async with BrokerAgents(options) as agents``.
    """

    def __init__(
        self,
        options: BrokerOptions,
        *,
        clock: Clock | None = None,
        random: Random | None = None,
        audit: AuditLog | None = None,
    ) -> None:
        """`audit`: where orders are recorded.

        Raises:
            DrengineError: BAD_CONFIG, BAD_NAME, BAD_TLS_FILES.
        """
        self._site = options.site
        self._is_one_broker = len(options.addresses) == 1
        self._clock = clock or SystemClock()
        self._known: dict[str, _Known] = {}
        self._waiting: dict[str, list[_Waiting]] = {}
        self._running: list[asyncio.Task[None]] = []
        self._settled = asyncio.Event()
        self._drops = Drops(self._clock)
        self._connected_at = 0.0
        self._proved_at = 0.0
        files = options.tls_files()
        self._seals = Seals(files, self._clock) if files else None
        self._orders = options.orders
        self._witness = OrderWitness(audit)
        self._require_own()
        self._own = Topic(self._site, PartyKind.ORCHESTRATOR, secrets.token_hex(8), Leaf.PRESENCE)
        self.link = Link(
            options,
            client_id=f"orchestrator-{self._own.name}",
            filters=[everyone(self._site, leaf) for leaf in HEARD_BY_ORCHESTRATORS],
            receive=self._receive,
            greeting=self._greeting,
            clock=self._clock,
            random=random or Random(secrets.randbits(64)),
        )

    async def __aenter__(self) -> BrokerAgents:
        self._running = [asyncio.create_task(self.link.run()), asyncio.create_task(self._keep_proving())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await asyncio.to_thread(self._witness.close)

    def reload(self) -> None:
        """Read the certificates again, for the next connection."""
        self.link.reload()

    @property
    def credentials(self) -> tuple[Credentials, ...]:
        """With which we show ourselves to the broker."""
        return (self.link.credentials,) if self.link.credentials else ()

    @property
    def dropped(self) -> Mapping[Dropped, int]:
        """How many messages were not taken, by reason."""
        return self._drops.counts

    # ---- what is known ---------------------------------------------------------------------------------------

    def reports(self) -> Mapping[str, AgentReport]:
        """Newest report of each party, by name; known even while the broker is away."""
        return {name: known.report for name, known in self._known.items() if known.report is not None}

    def is_online(self, name: str) -> bool:
        """Whether the broker sees the party; False while we don't see the broker."""
        known = self._known.get(name)
        return bool(self.link.is_connected and known and known.presence and known.presence.online)

    def is_away(self, name: str) -> bool:
        """Whether the broker is there and does not see the party; False while we have not heard all that it retains."""
        return self.link.is_connected and self._settled.is_set() and not self.is_online(name)

    def presences(self) -> Mapping[str, tuple[PartyKind, Presence]]:
        """What each party announced, or the broker on its behalf; empty just after a connection was made."""
        return {name: (known.kind, known.presence) for name, known in self._known.items() if known.presence is not None}

    def report_age_seconds(self, name: str) -> float | None:
        """For how long the broker has certainly carried no newer report of the party than the one we have.

        It ends at the newest moment for which that is proved: a message of our own, sent then, has come back after
        everything else. None where no report is known, or we don't see the broker. This is the silence after which
        an agent with a lease has fenced itself (docs/control.md). Where the broker has several addresses it is None as
        well: the agent may be heard at another one, so that its silence here proves nothing.
        """
        if not self._is_one_broker:
            return None
        known = self._known.get(name)
        if known is None or known.report is None or not self.link.is_connected:
            return None
        return max(0.0, self._proved_at - max(known.report_at, self._connected_at))

    async def settled(self, seconds: float = CONNECT_SECONDS) -> bool:
        """Wait until what the broker retained has arrived; False when there was no broker in time."""
        try:
            async with asyncio.timeout(seconds):
                await self._settled.wait()
        except TimeoutError:
            return False
        return True

    def _greeting(self) -> list[Message]:
        """A broker may have forgotten who is there, so we forget it as well; a message of our own, which it brings
        back after what it retained, shows that we have heard everything.
        """
        self._settled.clear()
        self._connected_at = self._clock.monotonic()
        for known in self._known.values():
            known.presence = None
        return [self._proof()]

    def _proof(self) -> Message:
        return Message(str(self._own), repr(self._clock.monotonic()).encode())

    async def _keep_proving(self) -> None:
        while True:
            await self._clock.sleep(PROVE_SECONDS)
            with contextlib.suppress(DrengineError):
                await self.link.publish(self._proof())

    # ---- commands --------------------------------------------------------------------------------------------

    async def command(
        self,
        name: str,
        verb: Verb,
        arguments: Mapping[str, Any],
        *,
        generation: int,
        id: str,
        timeout_seconds: float,
        progress: OnAnswer = lambda _: None,
        run: str = "",
        approver: str = "",
    ) -> Answer:
        """Send and wait for the final answer; the same `id` again gives the same answer.

        It is sent again and again until it is answered, so a broker may come and go meanwhile. The deadline that
        travels with it is ours: after it the party neither begins it nor goes on with it. It is signed where we have a
        certificate; where orders are to be signed, only an answer that the party has signed is believed.

        Raises:
            DrengineError: BROKER_UNREACHABLE, NO_ANSWER, BAD_NAME; AUDIT_UNUSABLE, nothing was sent.
        """
        topic = Topic(self._site, self._kind_of(name, verb), name, Leaf.COMMAND)
        command = Command(
            id=id,
            verb=verb,
            generation=generation,
            expires_ns=self._clock.now_ns() + int(timeout_seconds * 1e9),
            arguments=dict(arguments),
            run=run,
            to=str(self._identity_of(topic)),
            nonce=secrets.token_hex(16),
            approver=approver,
        )
        answer = await self._asked(topic, command, timeout_seconds, progress)
        is_signed = wants_signed(self._orders, self._seals)
        await asyncio.to_thread(self._witness.answered, command, answer, is_signed=is_signed)
        return answer

    async def _asked(self, topic: Topic, command: Command, timeout_seconds: float, progress: OnAnswer) -> Answer:
        payload = msgspec.json.encode(command)
        if self._seals is not None:
            payload = self._seals.seal(Purpose.ORDER, payload)
        message = Message(str(topic), payload, expiry_seconds=max(1, round(timeout_seconds)))
        if not await self.link.wait_connected(min(CONNECT_SECONDS, timeout_seconds)):
            raise DrengineError(BROKER_UNREACHABLE, f"no connection with the broker: {self.link.detail}")
        await asyncio.to_thread(self._witness.given, command, self._seals.identity if self._seals else None)
        with self._waiting_for(command.id, _Waiting(topic, digest(payload), _future(), progress)) as waiting:
            answered = waiting.answered
            sending = asyncio.create_task(self._keep_sending(message))
            out_of_time = asyncio.ensure_future(self._clock.sleep(timeout_seconds))
            patience = self._patience_seconds(topic)
            absent = asyncio.create_task(self._absent(topic, patience))
            either: set[asyncio.Future[Any]] = {answered, out_of_time, absent}
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in (sending, out_of_time, absent):
                    each.cancel()
            if answered.done():
                return answered.result()
            if absent.done():
                gone = f"{topic.name} was not connected with the broker for {patience:g} s: it is not waited for"
                raise DrengineError(NO_ANSWER, gone)
        raise self._unanswered(topic.name, command.verb, timeout_seconds, waiting.doubt)

    def _patience_seconds(self, topic: Topic) -> float:
        is_known_source = topic.kind is PartyKind.AGENT and topic.name in self._known
        return SOURCE_ABSENT_SECONDS if is_known_source else ABSENT_SECONDS

    async def _absent(self, topic: Topic, seconds: float) -> None:
        """Return when the broker has not seen the party for so long in a row; while we don't see the broker, nobody
        knows."""
        since = self._clock.monotonic()
        while self._clock.monotonic() - since < seconds:
            await self._clock.sleep(LOOK_SECONDS)
            if self.is_online(topic.name) or not self.link.is_connected:
                since = self._clock.monotonic()

    async def _keep_sending(self, message: Message) -> None:
        while True:
            with contextlib.suppress(DrengineError):
                await self.link.publish(message)
            await self.link.wait_made(ASK_AGAIN_SECONDS)

    @contextlib.contextmanager
    def _waiting_for(self, id: str, waiting: _Waiting) -> Iterator[_Waiting]:
        self._waiting.setdefault(id, []).append(waiting)
        try:
            yield waiting
        finally:
            self._waiting[id].remove(waiting)
            if not self._waiting[id]:
                del self._waiting[id]

    def _kind_of(self, name: str, verb: Verb) -> PartyKind:
        known = self._known.get(name)
        if known is not None:
            return known.kind
        return PartyKind.HOST if verb in HOST_VERBS else PartyKind.AGENT

    def _identity_of(self, topic: Topic) -> Identity:
        return Identity(self._site, Role(topic.kind.value), topic.name)

    def _require_own(self) -> None:
        """Say so where no party will take orders that we sign."""
        named = self._seals.identity if self._seals else None
        if self._seals and not (named and named.role is Role.ORCHESTRATOR and named.site == self._site):
            log.warning(
                "our certificate names %s, and no orchestrator of site %s: parties that want signed orders "
                "take none of ours",
                named or "nobody",
                self._site,
            )

    def _unanswered(self, name: str, verb: Verb, timeout_seconds: float, doubt: str) -> DrengineError:
        if not self.link.is_connected:
            return DrengineError(BROKER_UNREACHABLE, f"the broker went away before {name} answered: {self.link.detail}")
        known = self._known.get(name)
        if doubt:
            seen = f"what was answered is not believed: {doubt}"
        elif known is None:
            seen = "nothing was ever heard of it"
        elif not self.is_online(name):
            seen = "it is not connected with the broker"
        else:
            ignored = known.report.details.get("commands_ignored") if known.report else None
            seen = f"it is connected; commands it ignored so far: {ignored or 'none'} (compare the clocks)"
        return DrengineError(NO_ANSWER, f"{name} did not answer {verb.value} within {timeout_seconds:g} s: {seen}")

    # ---- what arrives ----------------------------------------------------------------------------------------

    def _receive(self, message: Message) -> None:
        topic = parse_topic(message.topic)
        if topic is None:
            return
        try:
            if topic.kind is PartyKind.ORCHESTRATOR:
                if topic == self._own:
                    self._take_proof(decode(message.payload, float))
                return
            match topic.leaf:
                case Leaf.ANSWER if not message.retained:
                    self._take_answer(topic, message.payload)
                case Leaf.PRESENCE:
                    self._take_presence(topic, decode(message.payload, Presence))
                case Leaf.REPORT:
                    self._take_report(topic, decode(message.payload, AgentReport))
        except Unreadable as error:
            self._drops.note(topic, error.reason, str(error))

    def _take_proof(self, sent_at: float) -> None:
        self._proved_at = min(sent_at, self._clock.monotonic())
        self._settled.set()

    def _take_answer(self, topic: Topic, payload: bytes) -> None:
        """An answer counts for an order of those bytes, given to that party; where orders are signed, under its key."""
        sealed = unsealed(payload)
        answer = decode(bytes(sealed.signed) if sealed else payload, Answer)
        bare, awaited = msgspec.structs.replace(answer, order=""), self._waiting.get(answer.id, [])
        signed = wants_signed(self._orders, self._seals)
        try:
            if signed and awaited:
                self._require_signed(topic, sealed)
        except Unreadable as error:
            for waiting in awaited:
                waiting.doubt = str(error)
            self._witness.disbelieved(str(topic), error.reason.value, str(error))
            raise
        for waiting in awaited:
            if (waiting.topic.kind, waiting.topic.name) != (topic.kind, topic.name):
                log.warning("%s answered a command that was not given to it", topic.name, extra={"id": answer.id})
            elif answer.order != waiting.order and (answer.order or signed):
                log.debug("an answer to another message of the same id", extra={"id": answer.id})
            elif not answer.done:
                waiting.progress(bare)
            elif not waiting.answered.done():
                waiting.answered.set_result(bare)

    def _require_signed(self, topic: Topic, sealed: Sealed | None) -> None:
        """
        Raises:
            Unreadable: the party has not signed it.
        """
        if sealed is None or self._seals is None:
            raise Unreadable(Dropped.UNSIGNED, f"{topic.name} did not sign it")
        try:
            by = self._seals.verify(Purpose.ANSWER, sealed)
        except BadSealError as error:
            raise Unreadable(Dropped.SIGNATURE, f"{error.code}: {error}") from error
        if by != self._identity_of(topic):
            raise Unreadable(Dropped.SIGNATURE, f"{by} signed it, in the name of {self._identity_of(topic)}")

    def _take_presence(self, topic: Topic, presence: Presence) -> None:
        known = self._party(topic)
        if known is None or presence == known.presence:
            return
        last = known.presence
        if last is not None and not presence.online and presence.instance != last.instance and last.online:
            return  # the will of a process that has a successor already
        known.presence = presence

    def _take_report(self, topic: Topic, report: AgentReport) -> None:
        known = self._party(topic)
        if known is None or (report.name, report.kind) != (topic.name, topic.kind):
            return
        last = known.report
        if last is not None and last.instance == report.instance and report.sequence <= last.sequence:
            return  # delayed or repeated
        known.report, known.report_at = report, self._clock.monotonic()

    def _party(self, topic: Topic) -> _Known | None:
        """What is known of the party, a new record for a new one; None where one of another kind has the name."""
        known = self._known.get(topic.name)
        if known is None and len(self._known) < PARTIES_MAX:
            known = self._known[topic.name] = _Known(topic.kind)
        if known is None or known.kind is not topic.kind:
            self._drops.note(topic, Dropped.PARTY, "the name is taken, or there are too many parties")
            return None
        return known


class NoAgents:
    """The parties where no broker is configured: none is known, and no command can be sent."""

    def reload(self) -> None:
        """There is nothing to read again."""

    @property
    def credentials(self) -> tuple[Credentials, ...]:
        """There are none."""
        return ()

    @property
    def dropped(self) -> Mapping[Dropped, int]:
        """None was heard."""
        return {}

    def presences(self) -> Mapping[str, tuple[PartyKind, Presence]]:
        """No party is seen."""
        return {}

    def reports(self) -> Mapping[str, AgentReport]:
        """No report has come."""
        return {}

    def is_online(self, name: str) -> bool:
        """Not as far as is known."""
        return False

    def is_away(self, name: str) -> bool:
        """Nobody says so."""
        return False

    def report_age_seconds(self, name: str) -> float | None:
        """None: no report has come."""
        return None

    async def settled(self, seconds: float = 0.0) -> bool:
        """There is no broker."""
        return False

    async def command(
        self,
        name: str,
        verb: Verb,
        arguments: Mapping[str, Any],
        *,
        generation: int,
        id: str,
        timeout_seconds: float,
        progress: OnAnswer = lambda _: None,
        run: str = "",
        approver: str = "",
    ) -> Answer:
        """
        Raises:
            DrengineError: BROKER_UNREACHABLE, always.
        """
        raise DrengineError(BROKER_UNREACHABLE, f"no broker is configured, so {name} can't be told to {verb.value}")


def _future() -> asyncio.Future[Answer]:
    return asyncio.get_running_loop().create_future()
