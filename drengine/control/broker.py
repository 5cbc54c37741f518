"""A broker of our own for one site: MQTT 5 with rights by identity, in a thread of its own, for quickstart and demo.

A client is who its certificate says. Without TLS, on loopback, it is who it says it is, if its process belongs to
root, to our user, or to a user that the configuration names: another user of the machine is not let in. What each may
say and hear stands in `rights`. Nothing is kept on disk: parties say again who they are after each connection.

Each client is handed its messages in the order in which they came, over all topics. One that takes none is cut off when
too much waits for it; one that says too much is read more slowly; and no identity has all places.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence

from drengine.config import Address
from drengine.control.clients import Client, NotLetInError, identified
from drengine.control.config import LOCAL_USERS
from drengine.control.errors import BROKER_FAILED
from drengine.control.message import PACKET_BYTES_MAX
from drengine.control.packets import Connect, PacketError, Reason, connack, parse
from drengine.control.router import Router
from drengine.model.clock import Clock, SystemClock
from drengine.model.errors import DrengineError
from drengine.transport.credentials import Credentials
from drengine.transport.files import TlsFiles
from drengine.transport.networks import is_loopback
from drengine.transport.tls import server_context

log = logging.getLogger("drengine.control.broker")

START_SECONDS = 15.0
CONNECT_SECONDS = 10.0
REVOKED_SECONDS = 2.0
KEEPALIVE_SECONDS_MAX = 1800.0
STRANGERS_MAX = 64
"""Connections that have not said CONNECT yet."""


class EmbeddedBroker:
    """One broker. Nothing else that this process does holds its messages up."""

    def __init__(
        self,
        address: Address,
        *,
        site: str = "main",
        files: TlsFiles | None = None,
        local_users: Sequence[str] = LOCAL_USERS,
        clock: Clock | None = None,
    ) -> None:
        """
        Args:
            address: where it listens; without TLS on loopback only.
            site: whose parties are let in.
            files: its certificate and the CA of its clients; None: no TLS.
            local_users: without TLS, whose processes are let in besides root's and ours.
            clock: measures time.

        Raises:
            DrengineError: BROKER_FAILED; BAD_TLS_FILES.
        """
        host = "127.0.0.1" if address.host == "localhost" else address.host
        self.address = Address(host, address.port)
        self._site = site
        self._users = local_users
        self._clock = clock or SystemClock()
        self._credentials = Credentials(files, server_context, role="clients", clock=self._clock) if files else None
        if self._credentials is None and not is_loopback(host):
            raise DrengineError(BROKER_FAILED, f"{address} is not on loopback, and there nobody is known without TLS")
        self.router = Router(self._clock)
        self._sessions: dict[asyncio.Task[None], bool] = {}
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], object] = lambda: None

    async def start(self) -> None:
        """Start it and wait until it takes connections.

        Raises:
            DrengineError: BROKER_FAILED.
        """
        try:
            listening = socket.create_server(
                (self.address.host, self.address.port),
                family=socket.AF_INET6 if ":" in self.address.host else socket.AF_INET,
                backlog=128,
            )
        except OSError as error:
            raise DrengineError(BROKER_FAILED, f"{self.address}: {error.strerror or error}") from error
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(listening, ready)), name="broker", daemon=True
        )
        self._thread.start()
        await asyncio.to_thread(ready.wait)
        log.info("embedded broker at %s", self.address)

    async def stop(self) -> None:
        """End it, and every connection."""
        self._stop()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    # ---- in its thread ---------------------------------------------------------------------------------------

    async def _serve(self, listening: socket.socket, ready: threading.Event) -> None:
        loop, stopping = asyncio.get_running_loop(), asyncio.Event()
        self._stop = lambda: loop.call_soon_threadsafe(stopping.set)
        listening.setblocking(False)
        ready.set()
        working = [asyncio.create_task(self._accept(listening)), asyncio.create_task(self._keep_ending_revoked())]
        await stopping.wait()
        self._stop = lambda: None
        for task in (*working, *self._sessions):
            task.cancel()
        await asyncio.gather(*working, *self._sessions, return_exceptions=True)
        listening.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError as error:
                log.warning("no connection can be taken: %s", error)
                await asyncio.sleep(0.1)
                continue
            strangers = [task for task, is_known in self._sessions.items() if not is_known]
            if len(strangers) >= STRANGERS_MAX:
                del self._sessions[strangers[0]]  # at once: it ends only when this loop has a rest
                strangers[0].cancel()  # the oldest, who had said nothing
            session = loop.create_task(self._session(accepted))
            self._sessions[session] = False
            session.add_done_callback(lambda task: self._sessions.pop(task, None))

    async def _session(self, accepted: socket.socket) -> None:
        """One connection, until it ends; whatever a client sends ends only its own."""
        writer: asyncio.StreamWriter | None = None
        try:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await self._opened(accepted)
                client = await self._greeted(reader, writer, accepted)
            if client is not None:
                task = asyncio.current_task()
                assert task is not None
                self._sessions[task] = True
                await self._hear(client, reader)
        except (OSError, EOFError, TimeoutError) as error:
            log.debug("a connection ended: %s", error)
        except Exception:
            log.exception("a connection failed")
        finally:
            (writer.close if writer else accepted.close)()

    async def _opened(self, accepted: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=PACKET_BYTES_MAX)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, accepted, ssl=self._credentials.context() if self._credentials else None
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def _greeted(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, raw: socket.socket
    ) -> Client | None:
        """The client that a connection brings; None when it is not let in."""
        try:
            hello = parse(*await _packet(reader))
            if not isinstance(hello, Connect):
                raise PacketError("CONNECT comes first", Reason.PROTOCOL)  # noqa: TRY301
            tls = writer.get_extra_info("ssl_object")
            certificate = tls.getpeercert(binary_form=True) if tls else None
            who = identified(hello, certificate, writer.get_extra_info("socket"), self._site, self._users)
        except PacketError as error:
            self.router.refuse(str(error))
            return None
        except NotLetInError as error:
            self.router.refuse(str(error))
            writer.write(connack(Reason.NOT_AUTHORIZED, packet_max=PACKET_BYTES_MAX))
            return None
        given = "" if hello.client_id else secrets.token_hex(8)
        client = Client(who, dataclasses.replace(hello, client_id=hello.client_id or given), writer, certificate)
        reason = self.router.admit(client)
        writer.write(connack(reason, packet_max=PACKET_BYTES_MAX, client_id=given))
        return client if reason is Reason.SUCCESS else None

    async def _hear(self, client: Client, reader: asyncio.StreamReader) -> None:
        patience = min(client.hello.keepalive_seconds * 1.5 or KEEPALIVE_SECONDS_MAX, KEEPALIVE_SECONDS_MAX)
        try:
            while True:
                async with asyncio.timeout(patience):
                    first, body = await _packet(reader)
                if not self.router.take(client, parse(first, body)):
                    return
                if wait := client.pause_seconds(self._clock.monotonic()):
                    await asyncio.sleep(wait)
        except PacketError as error:
            self.router.refuse(f"{client.who}: {error}")
            client.end(error.reason)
        finally:
            self.router.leave(client)

    async def _keep_ending_revoked(self) -> None:
        while True:
            await asyncio.sleep(REVOKED_SECONDS)
            if self._credentials is None:
                continue
            self._credentials.refresh()
            for client in list(self.router.clients):
                if client.certificate and self._credentials.is_revoked(client.certificate):
                    self.router.refuse(f"{client.who} was revoked")
                    client.end(Reason.NOT_AUTHORIZED)


@contextlib.asynccontextmanager
async def embedded_broker(
    address: Address,
    *,
    site: str = "main",
    files: TlsFiles | None = None,
    local_users: Sequence[str] = LOCAL_USERS,
) -> AsyncIterator[EmbeddedBroker]:
    """One that runs within this context.

    Raises:
        DrengineError: BROKER_FAILED, BAD_TLS_FILES.
    """
    broker = EmbeddedBroker(address, site=site, files=files, local_users=local_users)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


async def _packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The next packet: its first byte, and what follows its length.

    Raises:
        EOFError, OSError: the connection ended. PacketError: it is too long.
    """
    first, length = (await reader.readexactly(1))[0], 0
    for place in range(4):
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 0x7F) << 7 * place
        if not byte & 0x80:
            break
    else:
        raise PacketError("a length is too long")
    if length > PACKET_BYTES_MAX:
        raise PacketError(f"a packet of {length} bytes", Reason.TOO_LARGE)
    return first, await reader.readexactly(length)
