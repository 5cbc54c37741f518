"""One client of the NBD server on asyncio: moves bytes between transport, protocol core and export.

Back-pressure: while the core is blocked, or the client does not take its replies, nothing is read from it.
An export is closed only after every request it was given has been answered, even when the client has gone.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace

from drengine.linux.loopback import user_of
from drengine.model.errors import DrengineError
from drengine.nbd.budget import Budget, Holding
from drengine.nbd.errors import LOCAL_USER_REFUSED, NBD_LIMIT, NBD_UNKNOWN_EXPORT
from drengine.nbd.export import Buffer, Export, ExportProvider, NbdError, Peer, Reply, Request
from drengine.nbd.handshake import ExportWanted, NamesWanted, TlsPolicy, TlsWanted
from drengine.nbd.limits import NbdLimits
from drengine.nbd.numbers import OptionReply
from drengine.nbd.outgoing import Outgoing
from drengine.nbd.protocol import Ended, Event, Requests, ServerConnection, StatusWanted
from drengine.process.local import peer_uid

_log = logging.getLogger("drengine.nbd")
_LINGER_SECONDS = 5.0
_UNIX_SEND_BYTES = 512 << 10
"""What the system may hold of replies on a unix socket, as far as it allows: a long one leaves in one go."""
_ERRNO = {
    errno.EPERM: NbdError.EPERM,
    errno.EACCES: NbdError.EPERM,
    errno.EROFS: NbdError.EPERM,
    errno.ENOMEM: NbdError.ENOMEM,
    errno.EINVAL: NbdError.EINVAL,
    errno.ENOSPC: NbdError.ENOSPC,
    errno.EDQUOT: NbdError.ENOSPC,
    errno.EOPNOTSUPP: NbdError.ENOTSUP,
    errno.ESHUTDOWN: NbdError.ESHUTDOWN,
}


@dataclass(slots=True)
class ServerStats:
    """Counters of one server.

    Attributes:
        connections: accepted so far, refused ones included.
        ended: how connections ended, by reason code (an error id, or one of the server's few words).
        requests: handed to exports.
        bytes_received, bytes_sent: on the sockets, before TLS.
    """

    connections: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """What the connections of one server share.

    Attributes:
        provider: finds exports.
        limits: bounds on clients.
        policy, tls: whether there is TLS, and the context for the next handshake.
        allow: says whether a TCP peer may connect at all; None allows every one.
        refused: is told of each peer that may not open what it named, and why.
        sessions: those that are open.
        handshakes: those of them that transmit nothing yet, oldest first.
        stats: counters.
        budget: the memory that they share.
    """

    provider: ExportProvider
    limits: NbdLimits
    policy: TlsPolicy
    tls: Callable[[], ssl.SSLContext] | None
    allow: Callable[[Peer], bool] | None
    refused: Callable[[Peer, str, DrengineError], None]
    sessions: set[Session] = field(default_factory=set)
    handshakes: dict[Session, None] = field(default_factory=dict)
    stats: ServerStats = field(default_factory=ServerStats)
    budget: Budget = field(init=False)

    def __post_init__(self) -> None:
        limits = self.limits
        budget = Budget(max(limits.bytes_held_max, limits.request_bytes_max), limits.bytes_share, _call_soon)
        object.__setattr__(self, "budget", budget)

    def make_room(self) -> None:
        """A handshake more than may be ends the oldest one of the peer that has most: nobody keeps others out."""
        if len(self.handshakes) > self.limits.handshakes_max:
            held = Counter(each.party for each in self.handshakes)
            most = max(held, key=lambda party: held[party])
            oldest = next(each for each in self.handshakes if each.party == most)
            del self.handshakes[oldest]  # at once: the loop tells it of its end later
            oldest.abort("crowded")


def _call_soon(call: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(call)


class Session(asyncio.BufferedProtocol):
    """See the module.

    Attributes:
        closed: done when the client is gone and its export closed.
    """

    def __init__(self, service: Service, *, users: frozenset[int] | None = None) -> None:
        """One client; `users` of this machine are those who may connect, None: anybody who can."""
        loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._service = service
        self._limits = service.limits
        self._stats = service.stats
        self._users = users
        policy = service.policy
        if users is not None and policy is TlsPolicy.REQUIRED:
            policy = TlsPolicy.OPTIONAL  # the kernel says who is at the other end, and nobody else listens
        self._core = ServerConnection(service.limits, policy, self._room)
        self._holding = Holding(service.budget, self._go_on)
        self._transport: asyncio.Transport | None = None
        self._peer = Peer("unix")
        self._opened: tuple[str, Export] | None = None
        self._export: Export | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._deadline: asyncio.TimerHandle | None = None
        self._completed: list[Reply] = []
        self._busy = False
        self._waiting_for_turn = False
        self._outgoing: Outgoing | None = None
        self._received_bytes = self._moved_bytes = 0
        self._kept_waiting = False
        self._reading_paused = False
        self._draining = False
        self._gone = False
        self._given_up = False
        self._reason = ""

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet, or refuse one client too many."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        sock = transport.get_extra_info("socket")
        if sock.family == socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNIX_SEND_BYTES)  # TCP finds its own
        self._outgoing = Outgoing(transport, is_plain=True)
        service = self._service
        service.sessions.add(self)
        self._stats.connections += 1
        address = transport.get_extra_info("peername")
        if isinstance(address, tuple):
            own = transport.get_extra_info("sockname")
            # Loopback is shared by all users of a machine.
            uid = user_of(address[:2], own[:2]) if self._users is not None else None
            self._peer = Peer(address[0], address[1], uid=uid)
        elif sock.family == socket.AF_UNIX:
            self._peer = Peer("unix", uid=peer_uid(sock))
        service.handshakes[self] = None
        if len(service.sessions) - len(service.handshakes) >= self._limits.connections_max:
            self._fail(DrengineError(NBD_LIMIT, f"more than {self._limits.connections_max} connections"))
        elif service.allow is not None and isinstance(address, tuple) and not service.allow(self._peer):
            self.abort("outside-data-network")
        else:
            service.make_room()
            self._deadline = self._loop.call_later(self._limits.handshake_seconds_max, self._too_late)
            self._send(self._core.data_to_send())

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where asyncio receives."""
        return self._core.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come."""
        self._stats.bytes_received += nbytes
        self._received_bytes += nbytes
        self._run(lambda: self._core.received(nbytes))

    def eof_received(self) -> bool:
        """The client closed its side: whatever it did not wait for is finished, not answered."""
        return False

    def pause_writing(self) -> None:
        """The client does not take its replies."""
        if self._outgoing is not None:
            self._outgoing.pause()

    def resume_writing(self) -> None:
        """It took them."""
        if self._outgoing is not None:
            self._outgoing.resume()
        self._note_held()
        self._go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone; its export follows when nothing is in flight."""
        if self._gone:
            return
        self._gone = True
        self._service.handshakes.pop(self, None)
        self._core.eof()
        if self._deadline is not None:
            self._deadline.cancel()
        self._stats.ended[self._reason or "closed"] += 1
        self._outgoing = None  # with the replies that nobody takes any more
        self._note_held()
        self._finish()

    # Called by the server.

    def drain(self) -> None:
        """Finish what is in flight, refuse the rest, close."""
        self._draining = True
        self._core.drain()
        self._reason = self._reason or "shutdown"
        if not self._core.transmitting and self._transport is not None:
            self._transport.abort()
        self._finish()

    def abort(self, reason: str) -> None:
        """Close without ado."""
        self._reason = self._reason or reason
        if self._transport is not None:
            self._transport.abort()

    def cut_if_stalled(self) -> None:
        """Close if the client has not moved enough since this was last asked twice, while memory waits for it."""
        outgoing = self._outgoing
        if outgoing is None or self._gone:
            return
        moved = self._received_bytes + outgoing.taken_bytes
        waits = outgoing.waiting_bytes > 0 or (self._core.receiving_payload and not self._reading_paused)
        if waits and self._kept_waiting and moved - self._moved_bytes < self._limits.stalled_bytes_min:
            _log.warning("client %s is cut off: it has stopped taking replies or sending data", self._peer.address)
            self.abort("stalled")
        self._kept_waiting, self._moved_bytes = waits, moved

    @property
    def peer(self) -> Peer:
        """Who is connected."""
        return self._peer

    @property
    def party(self) -> str:
        """Whom its handshakes are counted for."""
        return f"uid {self._peer.uid}" if self._peer.uid is not None else self._peer.address

    @property
    def export(self) -> Export | None:
        """What it has open."""
        return self._opened[1] if self._opened else None

    def give_up(self) -> None:
        """The time for shutdown is over. An export that still has requests is left open: closing it could harm them."""
        self._given_up = True
        for task in self._tasks:
            task.cancel()
        self.abort("shutdown")

    # The core's events.

    def _run(self, step: Callable[[], list[Event]]) -> None:
        """Serve events until the buffer is used up or the connection has to wait."""
        if self._busy or self._gone:
            return
        self._busy = True
        try:
            events = step()
            turn_end = self._stats.requests + self._limits.requests_in_turn_max
            while True:
                for event in events:
                    self._serve(event)
                self._send(self._core.data_to_send())
                if self._core.blocked or self._is_full or not events:
                    break
                if self._stats.requests >= turn_end:
                    self._wait_for_turn()
                    break
                events = self._core.parse()
        except DrengineError as error:
            self._send(self._core.data_to_send())
            self._fail(error)
        finally:
            self._busy = False
        self._note_held()
        self._throttle()
        self._finish()

    def _room(self, in_flight_bytes: int) -> int:
        """How many more bytes requests may take of the memory that connections share."""
        waiting_bytes = self._outgoing.waiting_bytes if self._outgoing is not None else 0
        return self._holding.room(in_flight_bytes + waiting_bytes)

    def _note_held(self) -> None:
        held = self._core.bytes_in_flight
        if self._outgoing is not None:
            held += self._outgoing.waiting_bytes
        self._holding.note(held, waits=self._core.wanted_bytes > 0 and not (self._gone or self._is_full))

    @property
    def _is_full(self) -> bool:
        """The client does not take its replies: it is asked for nothing more."""
        return self._outgoing is not None and self._outgoing.is_full

    @property
    def _is_closing(self) -> bool:
        return self._outgoing is not None and self._outgoing.is_closing

    def _go_on(self) -> None:
        """With what is buffered, unless its turn comes anyway or the client must first take its replies."""
        if self._is_full:
            self._throttle()
        elif not self._waiting_for_turn:
            self._run(self._core.parse)

    def _wait_for_turn(self) -> None:
        """Let the loop serve others before what is buffered here."""
        if not self._waiting_for_turn:
            self._waiting_for_turn = True
            self._loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._waiting_for_turn = False
        self._run(self._core.parse)
        self._finish()

    def _serve(self, event: Event) -> None:
        match event:
            case Requests(requests):
                self._dispatch(requests)
            case StatusWanted(request):
                self._start(self._answer_status(request))
            case ExportWanted(name):
                self._start(self._open(name))
            case NamesWanted():
                self._start(self._list())
            case TlsWanted():
                self._throttle()
                self._send(self._core.data_to_send())
                self._start(self._secure())
            case Ended():
                pass  # _finish sees it when nothing is in flight

    def _dispatch(self, requests: list[Request]) -> None:
        export = self._export
        assert export is not None
        self._stats.requests += len(requests)
        if not export.inline:
            for request in requests:
                self._start(self._handle(export, request))
            return
        try:
            replies = export.submit(requests, self._complete)
            if replies:
                self._send(self._core.reply(replies))
        except Exception:  # noqa: BLE001  as in _handle
            _log.exception("export %r failed; its client %s is cut off", export.info.name, self._peer.address)
            unanswered = [Reply(r, NbdError.EIO, message="internal error") for r in requests if not r.answered]
            self._send(self._core.reply(unanswered))
            self._close("export-failed")

    async def _handle(self, export: Export, request: Request) -> None:
        try:
            reply = await export.handle(request)
        except Exception as error:  # noqa: BLE001  the client must get an answer whatever the export raises
            reply = self._failure(request, error)
        self._complete([reply])

    async def _answer_status(self, request: Request) -> None:
        export = self._export
        assert export is not None
        try:
            extents = await export.block_status(request.offset, request.length)
            self._send(self._core.reply_status(request, extents))
        except Exception as error:  # noqa: BLE001  as above
            self._send(self._core.reply([self._failure(request, error)]))
        self._note_held()
        self._go_on()
        self._finish()

    def _failure(self, request: Request, error: Exception) -> Reply:
        if isinstance(error, DrengineError):
            return Reply(request, NbdError.EIO, message=str(error))
        if isinstance(error, OSError):
            return Reply(request, _ERRNO.get(error.errno or 0, NbdError.EIO), message=error.strerror or "")
        _log.error("a request failed", exc_info=error)
        return Reply(request, NbdError.EIO, message="internal error")

    def _complete(self, replies: Sequence[Reply]) -> None:
        """Take late replies; those of one turn of the loop leave in one write."""
        if not self._completed:
            self._loop.call_soon(self._flush_completed)
        self._completed += replies

    def _flush_completed(self) -> None:
        replies, self._completed = self._completed, []
        try:
            self._send(self._core.reply(replies))
        except ValueError:
            _log.exception("an export answered wrongly; its client %s is cut off", self._peer.address)
            self._close("export-failed")
        self._note_held()
        self._go_on()
        self._finish()

    # The core's questions.

    async def _list(self) -> None:
        self._core.send_names(await self._service.provider.names(self._peer) if self._is_welcome else [])
        self._run(self._core.parse)

    @property
    def _is_welcome(self) -> bool:
        return self._users is None or self._peer.uid in self._users

    async def _open(self, name: str) -> None:
        """Open an export; one that an earlier option of this handshake opened is used again."""
        try:
            if not self._is_welcome:
                raise DrengineError(LOCAL_USER_REFUSED, f"user {self._peer.uid} may not use this socket")  # noqa: TRY301
            if self._opened is None or self._opened[0] != name:
                self._release()
                self._opened = (name, await self._service.provider.open(name, self._peer))
        except KeyError:
            self._core.export_refused(OptionReply.ERR_UNKNOWN, "there is no export of that name")
        except DrengineError as error:
            unknown = error.kind is NBD_UNKNOWN_EXPORT
            if not unknown:
                self._service.refused(self._peer, name, error)
            code = OptionReply.ERR_UNKNOWN if unknown else OptionReply.ERR_POLICY
            reason = getattr(error, "reason", error.kind.id)  # transport tells identities apart within one kind
            self._core.export_refused(code, f"{error.message} [{reason}]")
        except Exception:  # noqa: BLE001  as in _handle
            _log.exception("an export cannot be opened")
            self._core.export_refused(OptionReply.ERR_UNKNOWN, "internal error")
        else:
            export = self._opened[1]
            if self._core.export_found(export.info, inline=export.inline):
                self._export = export
                self._service.handshakes.pop(self, None)
                if self._deadline is not None:
                    self._deadline.cancel()
        self._run(self._core.parse)

    async def _secure(self) -> None:
        transport = self._transport
        assert transport is not None
        assert self._service.tls is not None
        transport.set_write_buffer_limits()
        try:
            secured = await self._loop.start_tls(
                transport,
                self,
                self._service.tls(),
                server_side=True,
                ssl_handshake_timeout=self._limits.handshake_seconds_max,
            )
        except (OSError, ssl.SSLError) as error:
            _log.warning("client %s: TLS failed: %s", self._peer.address, error)
            self._reason = self._reason or "tls-failed"
            transport.abort()
            self.connection_lost(error)
            return
        if not isinstance(secured, asyncio.Transport):  # None: we closed the connection in the middle of it
            self.connection_lost(None)
            return
        self._release()
        self._transport = secured
        self._outgoing = Outgoing(secured, is_plain=False)
        self._reading_paused = False
        certificate = secured.get_extra_info("peercert") or {}
        names = [value for rdn in certificate.get("subject", ()) for key, value in rdn if key == "commonName"]
        shown = secured.get_extra_info("ssl_object").getpeercert(binary_form=True) or b""
        self._peer = replace(self._peer, subject=names[0] if names else "", certificate=shown)
        self._core.tls_started()
        # The client's next option may have come in the same flight as the end of its TLS handshake.
        self._run(self._core.parse)

    # Ends and flow.

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended_task)

    def _ended_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("client %s is cut off", self._peer.address, exc_info=error)
            self._close("internal")
        self._finish()

    def _send(self, buffers: Sequence[Buffer]) -> None:
        if self._outgoing is None or self._gone:
            return
        self._stats.bytes_sent += sum(map(len, buffers))
        self._outgoing.send(buffers)

    def _throttle(self) -> None:
        """Read exactly while what comes can be taken."""
        wait = self._core.blocked or self._core.ended or self._is_full or self._waiting_for_turn or self._is_closing
        if wait == self._reading_paused or self._transport is None or self._transport.is_closing():
            return
        self._reading_paused = wait
        if wait:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _too_late(self) -> None:
        seconds = self._limits.handshake_seconds_max
        self._fail(DrengineError(NBD_LIMIT, f"the handshake took longer than {seconds:g} s"))

    def _fail(self, error: DrengineError) -> None:
        _log.warning("client %s is refused: %s", self._peer.address, error)
        self._close(error.kind.id)

    def _close(self, reason: str) -> None:
        """Close when the replies have left, or soon if the client does not take them."""
        self._reason = self._reason or reason
        if self._transport is None or self._outgoing is None or self._is_closing:
            return
        self._outgoing.close()
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._loop.call_later(_LINGER_SECONDS, self._transport.abort)

    def _finish(self) -> None:
        """Go on with the end, if this is one: first the requests in flight, then the client, then the export."""
        idle = self._core.requests_in_flight <= 0 and not (self._tasks or self._completed or self._waiting_for_turn)
        if not idle and not self._given_up:
            return
        if self._gone:
            if idle:
                self._release()
            self._service.sessions.discard(self)
            if not self.closed.done():
                self.closed.set_result(None)
        elif self._core.ended or self._draining:
            self._close("goodbye")

    def _release(self) -> None:
        if self._opened is not None:
            opened, self._opened = self._opened[1], None
            opened.close()
