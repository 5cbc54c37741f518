"""How the agent reaches targets: inside the data networks, with the certificates that lie on disk at that moment."""

from __future__ import annotations

import asyncio
import ssl

from drengine.config import Address
from drengine.linux.loopback import local_user_ids, user_of
from drengine.model.clock import Clock
from drengine.transport.credentials import Credentials
from drengine.transport.endpoints import connect
from drengine.transport.errors import PLAIN_REFUSED, TransportError
from drengine.transport.framed import FramedStream, StreamLimits, TrafficObserver
from drengine.transport.networks import DataNetworks
from drengine.transport.peers import PeerRules
from drengine.transport.tls import client_context
from drengine_agent.config import AgentConfig

ACCEPT_SECONDS = 5.0
LOOK_SECONDS = 0.01
OF_SEVERAL = StreamLimits(connecting_seconds=2.0, idle_seconds=8.0)
"""Where there are other targets: silence is waited for only as long as a living target needs to answer a PING."""


class Connector:
    """Connects to targets, those of the configuration and those that they send us to.

    Attributes:
        credentials: with which it shows itself; None without TLS, and until they could be read for the first time.
    """

    def __init__(self, config: AgentConfig, clock: Clock, observer: TrafficObserver | None) -> None:
        self.credentials: Credentials | None = None
        self._config = config
        self._clock = clock
        self._observer = observer
        self._limits = OF_SEVERAL if len(config.target) > 1 else StreamLimits()
        self._networks = DataNetworks.parse(config.data_networks)
        self._peers = PeerRules(lambda: self.credentials.identity if self.credentials else None)
        self._peer: bytes | None = None

    async def __call__(self, address: Address) -> FramedStream:
        """A new connection; nothing was said over it yet.

        Raises:
            TransportError: BAD_TLS_FILES, and as `connect`; TLS_FAILED and PLAIN_REFUSED also where somebody answers
                who is no target.
        """
        config = self._config
        stream = await connect(
            address.host,
            address.port,
            networks=self._networks,
            tls=self._context(),
            allow_plain=config.allow_plain,
            observer=self._observer,
            limits=self._limits,
        )
        try:
            if stream.peer_certificate is not None:
                stream.is_proved = self._peers.require_target(stream.peer_certificate)
            else:
                stream.is_proved = config.allow_plain or await self._is_local_target(stream, address)
            self._peer = stream.peer_certificate
        except BaseException:
            stream.abort()
            raise
        return stream

    async def _is_local_target(self, stream: FramedStream, address: Address) -> bool:
        """Without TLS a target is known by the user that runs it: any other could listen on its port while it is down.

        Raises:
            TransportError: PLAIN_REFUSED.
        """
        own, peer = stream.ends
        waited = 0.0
        while (user := await asyncio.to_thread(user_of, peer, own)) is None:  # it was not accepted yet
            if waited >= ACCEPT_SECONDS:
                return False
            await self._clock.sleep(LOOK_SECONDS)
            waited += LOOK_SECONDS
        if user not in local_user_ids((self._config.target_user,)):
            raise TransportError(
                PLAIN_REFUSED,
                "local-stranger",
                f"a process of user {user} answers at {address}",
                hint="`ss -ltnp` shows it. If that is the target, name its user as `target_user`, or use TLS.",
            )
        return True

    def reload(self) -> None:
        """Read the certificates again, for the next connection; this one goes on as it is."""
        if self.credentials is not None:
            self.credentials.refresh(again=True)

    @property
    def is_peer_revoked(self) -> bool:
        """Whether the target of the newest connection has been revoked since."""
        return self._peer is not None and self.credentials is not None and self.credentials.is_revoked(self._peer)

    def _context(self) -> ssl.SSLContext | None:
        """Certificates that can't be used must not stop capture, so they are read for the first time only here."""
        if self.credentials is None and (files := self._config.tls.files()):
            self.credentials = Credentials(files, client_context, role="target", clock=self._clock)
        return self.credentials.context() if self.credentials else None
