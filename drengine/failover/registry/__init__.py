"""The registry: parties, runbooks, runs with their journals, leases and schedules, in SQLite or PostgreSQL."""
