"""How the agent reaches its target: inside the data networks, with the certificates that lie on disk at that moment."""

from __future__ import annotations

import ssl

from drengine.model.clock import Clock
from drengine.transport.credentials import Credentials
from drengine.transport.endpoints import connect
from drengine.transport.errors import TransportError
from drengine.transport.framed import FramedStream, TrafficObserver
from drengine.transport.networks import DataNetworks
from drengine.transport.peers import PeerRules
from drengine.transport.tls import client_context
from drengine_agent.config import AgentConfig


class Connector:
    """Connects to the target that the configuration names.

    Attributes:
        credentials: with which it shows itself; None without TLS, and until they could be read for the first time.
    """

    def __init__(self, config: AgentConfig, clock: Clock, observer: TrafficObserver | None) -> None:
        self.credentials: Credentials | None = None
        self._config = config
        self._clock = clock
        self._observer = observer
        self._networks = DataNetworks.parse(config.data_networks)
        self._peers = PeerRules(lambda: self.credentials.identity if self.credentials else None)

    async def __call__(self) -> FramedStream:
        """A new connection.

        Raises:
            TransportError: BAD_TLS_FILES, and as `connect`; TLS_FAILED also where somebody else than a target answers.
        """
        config = self._config
        stream = await connect(
            config.target.host,
            config.target.port,
            networks=self._networks,
            tls=self._context(),
            allow_plain=config.allow_plain,
            observer=self._observer,
        )
        try:
            self._peers.require_target(stream.peer_certificate)
        except TransportError:
            stream.abort()
            raise
        return stream

    def reload(self) -> None:
        """Read the certificates again, for the next connection; this one goes on as it is."""
        if self.credentials is not None:
            self.credentials.refresh(again=True)

    def _context(self) -> ssl.SSLContext | None:
        """Certificates that can't be used must not stop capture, so they are read for the first time only here."""
        if self.credentials is None and (files := self._config.tls.files()):
            self.credentials = Credentials(files, client_context, role="target", clock=self._clock)
        return self.credentials.context() if self.credentials else None
