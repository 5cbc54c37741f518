"""One connection to the broker that comes back by itself: MQTT 5, QoS 1, clean sessions.

Nothing is queued for us at the broker and nothing is queued here: what matters is said again after each connection
(the greeting), and the sender of a command asks again until it is answered. A PUBACK proves nothing, because its
reason is not looked at by the library; so nothing here relies on one.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from drengine.control.config import BrokerOptions
from drengine.control.errors import BROKER_UNREACHABLE
from drengine.control.message import PAYLOAD_BYTES_MAX, Message
from drengine.linux.loopback import local_user_ids, user_of
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.transport.credentials import Credentials
from drengine.transport.errors import TransportError, tls_failure
from drengine.transport.peers import PeerRules
from drengine.transport.tls import client_context

if TYPE_CHECKING:
    from aiomqtt import Message as Arrived

    from drengine.control.mqtt import MqttClient

log = logging.getLogger("drengine.control")

BACKOFF_SECONDS_MIN = 0.2
BACKOFF_SECONDS_MAX = 5.0
_LOST = "the connection was lost"


class Link:
    """A connection to the broker, for one event loop."""

    def __init__(
        self,
        options: BrokerOptions,
        *,
        client_id: str,
        filters: Sequence[str],
        receive: Callable[[Message], None],
        greeting: Callable[[], Sequence[Message]] = tuple,
        will: Message | None = None,
        clock: Clock,
        random: Random,
    ) -> None:
        """
        Args:
            options: where the broker is.
            client_id: unique among all clients; another with the same id would throw us out.
            filters: what is subscribed to.
            receive: is given what arrives; must not block.
            greeting: what is published after each connection, before anything else.
            will: what the broker says when we are gone.
            clock: paces the attempts.
            random: spreads them.

        Raises:
            DrengineError: BAD_CONFIG, BAD_TLS_FILES.
        """
        options.check("the broker's section")
        self._options = options
        self._client_id = client_id
        self._filters = tuple(filters)
        self._receive = receive
        self._greeting = greeting
        self._will = will
        self._clock = clock
        self._random = random
        self.credentials = _credentials(options, clock)
        self._peers = PeerRules(lambda: self.credentials.identity if self.credentials else None)
        self._turn = 0  # which address is tried
        self._client: MqttClient | None = None
        self._connected = asyncio.Event()
        self._made = asyncio.Event()
        self.connections = 0
        self.detail = "not connected yet"
        """Why there is no connection."""

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._connected.is_set()

    async def wait_connected(self, seconds: float) -> bool:
        """Wait for a connection; False when there was none in time."""
        try:
            async with asyncio.timeout(seconds):
                await self._connected.wait()
        except TimeoutError:
            return False
        return True

    async def wait_made(self, seconds: float) -> None:
        """Wait until a connection is made anew, or for so long."""
        making = asyncio.ensure_future(self._made.wait())
        sleeping = asyncio.ensure_future(self._clock.sleep(seconds))
        either: set[asyncio.Future[Any]] = {making, sleeping}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            making.cancel()
            sleeping.cancel()

    async def publish(self, message: Message) -> None:
        """Hand a message to the broker.

        Raises:
            DrengineError: BROKER_UNREACHABLE.
        """
        client = self._client
        if client is None:
            raise DrengineError(BROKER_UNREACHABLE, f"{self._where}: {self.detail}")
        try:
            await client.say(message)
        except client.failure as error:
            raise DrengineError(BROKER_UNREACHABLE, f"{self._where}: {_said(error)}") from error

    async def run(self) -> None:
        """Stay connected until cancelled."""
        if self._options.address is None:
            self.detail = "no broker is configured"
            await asyncio.Event().wait()
        kind, attempts = _client_kind(), 0
        while True:
            before = self.connections
            try:
                await self._serve(self._new_client(kind))
            except (kind.failure, OSError, ValueError) as error:
                self.detail = _said(error)
                if self.detail == _LOST and self.credentials and self.connections == before:
                    self.detail += (
                        " before it was agreed upon: the broker's log says whether it refused our certificate"
                    )
                task = asyncio.current_task()
                if task is not None and task.cancelling():  # the library put its own error in place of that
                    raise asyncio.CancelledError from error
            attempts = 1 if self.connections > before else attempts + 1
            if attempts == 1:
                log.warning("the broker %s is not reachable: %s", self._where, self.detail)
            self._turn = (self._turn + 1) % len(self._options.addresses)
            ceiling = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2 ** min(attempts, 8))
            await self._clock.sleep(self._random.uniform(BACKOFF_SECONDS_MIN, ceiling))

    async def _serve(self, client: MqttClient) -> None:
        try:
            async with client:
                await self._require_broker(client)
                await client.hear(self._filters)
                for message in self._greeting():
                    await client.say(message)
                self._client = client
                self.connections += 1
                self.detail = ""
                self._connected.set()
                self._made.set()  # wakes the tasks that wait now, and none later
                self._made.clear()
                log.info("connected with the broker %s", self._where)
                async for arrived in client.messages:
                    self._take(arrived)
        finally:
            self._client = None
            self._connected.clear()
            client.abandon()

    async def _require_broker(self, client: MqttClient) -> None:
        """A certificate that names somebody must name a broker. Without TLS, on loopback, a broker is known by the
        user that runs it: any other could listen on its port.

        Raises:
            OSError: somebody else answers there.
        """
        if self.credentials is not None:
            try:
                self._peers.require_broker(client.peer_certificate)
            except TransportError as error:
                raise OSError(str(error)) from error
            return
        if self._options.allow_plain:
            return
        own, peer = client.ends
        user = await asyncio.to_thread(user_of, peer, own)
        if user not in local_user_ids(self._options.local_users):
            raise OSError(
                f"a process of user {user} answers there; if that is the broker, name its user in `local_users`"
            )

    def _take(self, message: Arrived) -> None:
        payload = message.payload
        if not isinstance(payload, bytes | bytearray) or len(payload) > PAYLOAD_BYTES_MAX:
            log.warning("a message on %s was dropped: %s", message.topic, "no payload of ours")
            return
        try:
            self._receive(Message(message.topic.value, bytes(payload), retained=message.retain))
        except Exception:
            log.exception("a message on %s could not be taken", message.topic)

    def _new_client(self, kind: type[MqttClient]) -> MqttClient:
        return kind(
            self._options.addresses[self._turn],
            self._client_id,
            tls=self.credentials.context() if self.credentials else None,
            keepalive_seconds=max(1, round(self._options.keepalive)),
            will=self._will,
        )

    def reload(self) -> None:
        """Read the certificates again, for the next connection; this one goes on, unless the broker was revoked."""
        if self.credentials is None:
            return
        self.credentials.refresh(again=True)
        broker = self._client.peer_certificate if self._client else None
        if self._client is not None and broker is not None and self.credentials.is_revoked(broker):
            log.error("the certificate of the broker %s was revoked: the connection ends", self._where)
            self._client.break_off()

    @property
    def _where(self) -> str:
        addresses = self._options.addresses
        return str(addresses[self._turn]) if addresses else "(none)"


def _client_kind() -> type[MqttClient]:
    from drengine.control.mqtt import MqttClient  # noqa: PLC0415 - a party that has no broker waits for no library

    return MqttClient


def _credentials(options: BrokerOptions, clock: Clock) -> Credentials | None:
    files = options.tls_files()
    if files is None:
        return None
    return Credentials(files, client_context, role="broker", clock=clock)


def _said(error: Exception) -> str:
    cause = error.__cause__ or error.__context__ or error  # aiomqtt hides the cause, and repeats its text
    if isinstance(cause, ssl.SSLError):
        failure = tls_failure("TLS", cause)
        return f"{failure.message}; {failure.hint}"
    text = f"{error.__cause__ or error}"
    return _LOST if "Unspecified error" in text else text or type(error).__name__
