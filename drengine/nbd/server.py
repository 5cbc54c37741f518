"""The NBD server: listeners on TCP and unix sockets, and their shutdown.

Shutdown (`close`): listeners close first; connections in the handshake are dropped; those in transmission finish
what is in flight, answer ESHUTDOWN to what comes after, and are closed; those that have not finished in time are cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import stat
from collections.abc import Callable
from pathlib import Path

from drengine.model.errors import DrengineError
from drengine.nbd.errors import NBD_LISTEN
from drengine.nbd.export import Export, ExportProvider, Peer
from drengine.nbd.handshake import TlsPolicy
from drengine.nbd.limits import NbdLimits
from drengine.nbd.session import ServerStats, Service, Session
from drengine.ownership import make_directory
from drengine.process.local import own_users, require_safe_folder

_BACKLOG = 128


class NbdServer:
    """Serves a provider's exports on any number of listeners."""

    def __init__(
        self,
        provider: ExportProvider,
        *,
        limits: NbdLimits | None = None,
        tls: Callable[[], ssl.SSLContext] | None = None,
        tls_required: bool = False,
        allow: Callable[[Peer], bool] | None = None,
        refused: Callable[[Peer, str, DrengineError], None] = lambda peer, name, error: None,
    ) -> None:
        """Prepare a server; nothing listens yet.

        Args:
            provider: finds exports by name.
            limits: bounds on its clients.
            tls: gives the context with the server's certificate for each handshake; None offers no TLS.
            tls_required: serve nothing before TLS has started; on unix sockets it is offered only.
            allow: says whether a TCP peer may connect at all (data networks); None allows every one.
            refused: is told of each peer that may not open the export that it named, and why.
        """
        if tls_required and tls is None:
            raise ValueError("TLS cannot be required without a certificate")
        policy = TlsPolicy.REQUIRED if tls_required else TlsPolicy.OPTIONAL if tls else TlsPolicy.OFF
        self._service = Service(provider, limits or NbdLimits(), policy, tls, allow, refused)
        self._listeners: list[asyncio.Server] = []
        self._unix_paths: list[Path] = []
        self._sweep: asyncio.TimerHandle | None = None

    @property
    def stats(self) -> ServerStats:
        """Counters for metrics."""
        return self._service.stats

    @property
    def connections(self) -> int:
        """Open now."""
        return len(self._service.sessions)

    @property
    def exports(self) -> list[Export]:
        """What the connections have open."""
        return [session.export for session in self._service.sessions if session.export is not None]

    @property
    def held_bytes(self) -> int:
        """Memory of requests and replies beyond the connections' shares."""
        return self._service.budget.pooled_bytes

    def cut_stalled(self) -> None:
        """Cut off clients for which memory waits and that have not moved since this was last done; called in time."""
        for session in list(self._service.sessions):
            session.cut_if_stalled()

    def _keep_cutting(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweep = loop.call_later(self._service.limits.stalled_seconds_max, self._keep_cutting)
        self.cut_stalled()

    def _listening(self, listener: asyncio.Server) -> None:
        self._listeners.append(listener)
        if self._sweep is None:
            self._keep_cutting()

    def cut_off(self, is_refused: Callable[[Peer, Export | None], bool]) -> None:
        """Close the connections of these peers, with what each has open, at once."""
        for session in list(self._service.sessions):
            if is_refused(session.peer, session.export):
                session.abort("revoked")

    async def start_tcp(self, host: str, port: int = 0, *, users: frozenset[int] | None = None) -> tuple[str, int]:
        """Listen on one address; returns the address and the port that was got.

        On loopback only `users` of this machine may use it; None: anybody.

        Raises:
            DrengineError: NBD_LISTEN.
        """
        if users is not None and self._service.policy is not TlsPolicy.OFF:
            raise ValueError("with TLS certificates say who comes")
        loop = asyncio.get_running_loop()
        try:
            listener = await loop.create_server(
                lambda: Session(self._service, users=users), host, port, backlog=_BACKLOG
            )
        except (OSError, OverflowError) as error:
            raise DrengineError(NBD_LISTEN, f"cannot listen at {host}:{port}: {error}") from error
        self._listening(listener)
        address = listener.sockets[0].getsockname()
        return address[0], address[1]

    async def start_unix(self, path: str | os.PathLike[str], *, users: frozenset[int] = frozenset()) -> Path:
        """Listen on a unix socket for our own user, root and `users`; a stale socket is replaced, a living one is not.

        Where it is for nobody else its mode is 0600. Else it is 0666, and who connects is judged by the kernel's word.
        A folder that is missing is made: others may pass through it, and the socket's own mode says who may connect.

        Raises:
            DrengineError: NBD_LISTEN.
        """
        loop = asyncio.get_running_loop()
        place, allowed = Path(path), own_users() | users

        def session() -> Session:
            return Session(self._service, users=allowed)

        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            make_directory(place.parent, mode=0o755)
            require_safe_folder(place)
            _remove_stale(place)
            listening.bind(str(place))
            self._unix_paths.append(place)
            os.chmod(place, 0o666 if users else 0o600)  # noqa: PTH101  before anyone can connect: it does not listen yet
            listener = await loop.create_unix_server(session, sock=listening, backlog=_BACKLOG)
        except OSError as error:
            listening.close()
            raise DrengineError(NBD_LISTEN, f"cannot listen at {place}: {error}") from error
        self._listening(listener)
        return place

    async def close(self, grace_seconds: float = 10.0) -> None:
        """Stop: at once for idle clients, after `grace_seconds` at the latest for requests in flight."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for session in list(self._service.sessions):
            session.drain()
        waiting = [session.closed for session in self._service.sessions]
        if waiting:
            await asyncio.wait(waiting, timeout=grace_seconds)
        for session in list(self._service.sessions):
            session.give_up()
        # Transports report their end from the loop's next turns; a second is far more than these need.
        waiting = [session.closed for session in self._service.sessions]
        if waiting:
            await asyncio.wait(waiting, timeout=1.0)
        for path in self._unix_paths:
            with contextlib.suppress(OSError):
                path.unlink()
        self._unix_paths.clear()


def _remove_stale(path: Path) -> None:
    """Remove a socket on which no process listens.

    Raises:
        OSError: something else is there, or somebody listens.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError("it exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise FileExistsError("another server listens there")
