"""The registry: parties, runbooks, runs with their journals, leases and schedules, in SQLite or PostgreSQL."""

from drengine.failover.registry.registry import Registry

__all__ = ["Registry"]
