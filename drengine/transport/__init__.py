"""The asyncio shell around the replication protocol: sockets, TLS, the data-network check, byte counters."""

from drengine.transport.framed import FramedStream, TrafficObserver, connect, serve
from drengine.transport.networks import DataNetworks
from drengine.transport.tls import TlsFiles, client_context, server_context

__all__ = [
    "DataNetworks",
    "FramedStream",
    "TlsFiles",
    "TrafficObserver",
    "client_context",
    "connect",
    "serve",
    "server_context",
]
