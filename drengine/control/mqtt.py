"""aiomqtt, as we use it: MQTT 5, QoS 1. Imported only by processes that connect.

Some of its habits would hurt a process that does more than MQTT in the same event loop, and are mended here: it asks
the loop to watch a socket that may be closed by then, whose number may belong to somebody else; it leaves the socket
of a connection that did not come about open; and it waits with asyncio.wait_for, which before Python 3.12 forgets that
it was cancelled when what it waits for comes at the same moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, ClassVar

import aiomqtt
from aiomqtt import MqttError
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from drengine.config import Address
from drengine.control.message import PACKET_BYTES_MAX, Message

if TYPE_CHECKING:
    from paho.mqtt.client import Client as PahoClient

__all__ = ["MqttClient", "MqttError"]

log = logging.getLogger("drengine.control.mqtt")
log.setLevel(logging.CRITICAL)  # what it has to say comes to us as exceptions

INCOMING_MAX = 4096
CALL_SECONDS = 5.0


class MqttClient(aiomqtt.Client):
    """One connection; made anew for each. `failure` is what breaks it."""

    failure: ClassVar[type[Exception]] = MqttError

    def __init__(
        self,
        address: Address,
        client_id: str,
        *,
        tls: ssl.SSLContext | None,
        keepalive_seconds: int,
        will: Message | None,
    ) -> None:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = PACKET_BYTES_MAX
        super().__init__(
            address.host,
            address.port,
            identifier=client_id,
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=True,
            keepalive=keepalive_seconds,
            timeout=CALL_SECONDS,
            will=aiomqtt.Will(will.topic, will.payload, 1, will.retained) if will else None,
            tls_context=tls,
            max_queued_incoming_messages=INCOMING_MAX,
            properties=properties,
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],  # otherwise 40 ms are waited, each way
            logger=log,
        )

    async def say(self, message: Message) -> None:
        """Publish; returns when the broker has acknowledged it, whatever it thinks of it.

        Raises:
            MqttError: the connection broke, or it took too long.
        """
        properties = None
        if message.expiry_seconds:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.MessageExpiryInterval = message.expiry_seconds
        await _cancellable(
            self.publish(message.topic, message.payload, qos=1, retain=message.retained, properties=properties)
        )

    async def hear(self, filters: tuple[str, ...]) -> None:
        """Subscribe. A retained message keeps its flag on its way to us, so that a retained command shows itself.

        Raises:
            MqttError: the connection broke, or it took too long.
        """
        wanted = [(each, SubscribeOptions(qos=1, retainAsPublished=True)) for each in filters]
        await _cancellable(self.subscribe(wanted))

    @property
    def peer_certificate(self) -> bytes | None:
        """The broker's, in DER; None without TLS or without a connection."""
        sock = self._client.socket()
        return sock.getpeercert(binary_form=True) if isinstance(sock, ssl.SSLSocket) else None

    @property
    def ends(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """Our address and the broker's, with their ports.

        Raises:
            OSError: the connection is gone.
        """
        raw = self._client.socket()
        if not isinstance(raw, socket.socket):
            raise OSError("the connection is gone")
        return raw.getsockname()[:2], raw.getpeername()[:2]

    def break_off(self) -> None:
        """End the connection as if the network had: whoever waits for messages is told."""
        sock = self._client.socket()
        if isinstance(sock, socket.socket):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def abandon(self) -> None:
        """Close what a connection that failed left open."""
        with contextlib.suppress(Exception):
            self._client._sock_close()

    def _on_socket_register_write(self, client: PahoClient, userdata: Any, sock: Any) -> None:
        """Called by any thread, for a socket that may be closed before the loop gets to it."""
        self._loop.call_soon_threadsafe(self._watch_write, client, sock)

    def _watch_write(self, client: PahoClient, sock: socket.socket) -> None:
        if sock.fileno() >= 0:
            self._loop.add_writer(sock.fileno(), self._write, client)

    def _write(self, client: PahoClient) -> None:
        try:
            client.loop_write()
        except Exception as error:  # noqa: BLE001 - whatever it is, the connection is over
            if not self._disconnected.done():
                self._disconnected.set_exception(error)


async def _cancellable(call: Awaitable[object]) -> None:
    """Await the call; a task that was cancelled meanwhile is cancelled, whatever the call returned."""
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        await call
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError
