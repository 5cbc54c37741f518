"""The asyncio shell around the replication protocol: sockets, TLS, the data-network check, byte counters."""
