"""The replication protocol, sans-I/O: bytes to events and events to bytes. It owns no socket, clock or thread."""
