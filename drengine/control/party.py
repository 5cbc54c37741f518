"""A party on the broker: an agent or a recovery host. It says that it is there and how it stands, and obeys.

The broker tells others when we are gone (last will). Two processes may follow each other quickly, and the will of the
old one may come after the new one has said hello; so a party watches its own presence and corrects an `offline` that
is not true. Another process that says `online` in our name is never answered (that would go to and fro), but told to
the operator: one identity is used twice (fault 41).

Our own reports come back to us as well: that, and no PUBACK, proves that the broker carries what we say.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from drengine import __version__
from drengine.control.command_log import CommandLog
from drengine.control.config import BrokerOptions
from drengine.control.dispatch import Action, Dispatcher
from drengine.control.foreign import Unreadable, decode
from drengine.control.gate import EVERYTHING, Gate, Policy
from drengine.control.link import Link
from drengine.control.message import PAYLOAD_BYTES_MAX, Message
from drengine.control.messages import AgentReport, Answer, PartyKind, Presence, Verb
from drengine.control.seals import Purpose, Seals
from drengine.control.topics import Leaf, Topic
from drengine.identity.names import Identity, Role
from drengine.linux.host import described_host
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError

log = logging.getLogger("drengine.control")

LOOK_SECONDS = 1.0
REPORTS_REMEMBERED = 64
GOODBYE_SECONDS = 1.0
KEPT_DETAILS = ("lease_seconds", "commands_ignored", "version", "platform", "certificate_ends_ns", "tracker", "policy")
"""What even a report that would be too long says: decisions rest on it."""


class Party:
    """One party's side of the control messages."""

    def __init__(
        self,
        options: BrokerOptions,
        kind: PartyKind,
        name: str,
        *,
        actions: Mapping[Verb, Action],
        report: Callable[[], AgentReport],
        log: Path,
        clock: Clock,
        random: Random,
        report_seconds: float = 5.0,
        on_confirmed: Callable[[float], None] = lambda _: None,
        policy: Policy = EVERYTHING,
    ) -> None:
        """
        Args:
            options: where the broker is.
            kind: agent or host.
            name: of the source or host; its certificate's CN where the broker goes by certificates.
            actions: what it can be told to do.
            report: how it stands; name, kind, instance, sequence and moment are filled in here.
            log: file for the log of commands; its directory is there.
            clock: of the process.
            random: spreads attempts to connect.
            report_seconds: a report is sent when something changed, and at least so often.
            on_confirmed: is given the (monotonic) moment at which a report was sent that has come back.
            policy: what it lets itself be told.

        Raises:
            DrengineError: BAD_NAME, BAD_CONFIG, BAD_TLS_FILES.
        """
        self._kind = kind
        self._name = name
        self._report = report
        self._clock = clock
        self._report_seconds = report_seconds
        self._on_confirmed = on_confirmed
        self._topics = {leaf: Topic(options.site, kind, name, leaf) for leaf in Leaf}
        self._instance = secrets.token_hex(8)
        self._since_ns = clock.now_ns()
        self._sequence = 0
        self._sent_at: dict[int, float] = {}
        self._leaving = False
        self._correcting: set[asyncio.Task[None]] = set()
        self._log = CommandLog(log)
        self._seals = _seals(options, Identity(options.site, Role(kind.value), name), clock)
        self._dispatcher = Dispatcher(
            actions,
            self._log,
            generation=lambda: self._report().generation,
            answer=self._send_answer,
            clock=clock,
            gate=Gate(
                Identity(options.site, Role(kind.value), name), self._seals, orders=options.orders, policy=policy
            ),
        )
        self.link = self._new_link(options, random)

    @property
    def dispatcher(self) -> Dispatcher:
        """Its counters are for metrics."""
        return self._dispatcher

    def _new_link(self, options: BrokerOptions, random: Random) -> Link:
        return Link(
            options,
            client_id=f"{self._kind}-{self._name}-{self._instance[:8]}",
            filters=[str(self._topics[leaf]) for leaf in (Leaf.COMMAND, Leaf.PRESENCE, Leaf.REPORT)],
            receive=self._receive,
            greeting=lambda: [self._presence(online=True), self._next_report(self._report())],
            will=self._presence(online=False),
            clock=self._clock,
            random=random,
        )

    async def run(self) -> None:
        """Be there until cancelled; then say goodbye.

        Raises:
            OSError: the log of commands can't be used.
        """
        await self._log.load()
        connecting = asyncio.create_task(self.link.run())
        reporting = asyncio.create_task(self._keep_reporting())
        try:
            done, _ = await asyncio.wait((connecting, reporting), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._leaving = True
            reporting.cancel()
            with contextlib.suppress(DrengineError, TimeoutError):
                async with asyncio.timeout(GOODBYE_SECONDS):
                    await self.link.publish(self._presence(online=False))
            connecting.cancel()
            await self._dispatcher.close()
            await asyncio.gather(connecting, reporting, *self._correcting, return_exceptions=True)

    async def _keep_reporting(self) -> None:
        last: tuple[object, ...] = ()
        last_at = 0.0
        while True:
            await self._clock.sleep(min(LOOK_SECONDS, self._report_seconds))
            if not self.link.is_connected:
                continue
            report, now = self._report(), self._clock.monotonic()
            essence = (report.state, report.reason, report.generation, report.fenced, report.serving)
            if essence != last or now - last_at >= self._report_seconds:
                last, last_at = essence, now
                with contextlib.suppress(DrengineError):
                    await self.link.publish(self._next_report(report))

    def _next_report(self, report: AgentReport) -> Message:
        self._sequence += 1
        self._sent_at[self._sequence] = self._clock.monotonic()
        if len(self._sent_at) > REPORTS_REMEMBERED:
            del self._sent_at[min(self._sent_at)]
        report = msgspec.structs.replace(
            report,
            name=self._name,
            kind=self._kind,
            at_ns=self._clock.now_ns(),
            sequence=self._sequence,
            instance=self._instance,
            details={**report.details, **self._about()},
        )
        payload = msgspec.json.encode(report)
        if len(payload) > PAYLOAD_BYTES_MAX:
            kept = {key: report.details[key] for key in KEPT_DETAILS if key in report.details}
            short = msgspec.structs.replace(report, volumes=[], details={**kept, "shortened": True})
            payload = msgspec.json.encode(short)
        return Message(str(self._topics[Leaf.REPORT]), payload, retained=True)

    def _about(self) -> dict[str, Any]:
        """What is the same for each kind of party."""
        credentials = self.link.credentials
        told = {"version": __version__, "platform": described_host()}
        return {**told, "certificate_ends_ns": credentials.ends_ns} if credentials else told

    def _presence(self, *, online: bool) -> Message:
        presence = Presence(online=online, since_ns=self._since_ns, instance=self._instance, version=__version__)
        return Message(str(self._topics[Leaf.PRESENCE]), msgspec.json.encode(presence), retained=True)

    async def _send_answer(self, answer: Answer) -> None:
        payload = msgspec.json.encode(answer)
        if self._seals is not None:
            payload = self._seals.seal(Purpose.ANSWER, payload)
        with contextlib.suppress(DrengineError):  # a waiting peer asks again
            await self.link.publish(Message(str(self._topics[Leaf.ANSWER]), payload))

    # ---- what arrives ----------------------------------------------------------------------------------------

    def _receive(self, message: Message) -> None:
        if message.topic == str(self._topics[Leaf.COMMAND]):
            self._dispatcher.receive(message.payload, retained=message.retained)
        elif message.topic == str(self._topics[Leaf.REPORT]):
            self._receive_report(message.payload)
        elif message.topic == str(self._topics[Leaf.PRESENCE]):
            self._receive_presence(message.payload)

    def _receive_report(self, payload: bytes) -> None:
        with contextlib.suppress(Unreadable):
            report = decode(payload, AgentReport)
            sent_at = self._sent_at.pop(report.sequence, None) if report.instance == self._instance else None
            if sent_at is not None:
                self._on_confirmed(sent_at)

    def _receive_presence(self, payload: bytes) -> None:
        try:
            presence = decode(payload, Presence)
        except Unreadable:
            return
        if not presence.online:
            self._say_online()
        elif presence.instance != self._instance:
            log.error("another process is at the broker as %s %s", self._kind, self._name)

    def _say_online(self) -> None:
        async def say() -> None:
            with contextlib.suppress(DrengineError):
                await self.link.publish(self._presence(online=True))

        if self.link.is_connected and not self._leaving:
            task = asyncio.create_task(say())
            self._correcting.add(task)
            task.add_done_callback(self._correcting.discard)


def _seals(options: BrokerOptions, own: Identity, clock: Clock) -> Seals | None:
    """What our certificate signs with; and a word in the log where nobody would believe it.

    Raises:
        DrengineError: BAD_CONFIG, BAD_TLS_FILES.
    """
    files = options.tls_files()
    seals = Seals(files, clock) if files else None
    if seals is not None and seals.identity != own:
        log.warning(
            "our certificate names %s, and we are %s: orchestrators that want signed answers don't believe ours",
            seals.identity or "nobody",
            own,
        )
    return seals
