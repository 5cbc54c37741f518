"""The asyncio shell around the replication protocol: sockets, TLS, the data-network check, byte counters."""

from drengine.transport.endpoints import Listener, connect, serve
from drengine.transport.errors import TransportError, reason_of
from drengine.transport.framed import FramedStream, StreamLimits, TrafficObserver
from drengine.transport.networks import DataNetworks
from drengine.transport.tls import TlsFiles, client_context, server_context

__all__ = [
    "DataNetworks",
    "FramedStream",
    "Listener",
    "StreamLimits",
    "TlsFiles",
    "TrafficObserver",
    "TransportError",
    "client_context",
    "connect",
    "reason_of",
    "serve",
    "server_context",
]
