"""The registry's tables, as the newest of `migrations/` leaves them.

JSON is kept as text: it may hold anything that JSON can, which PostgreSQL's jsonb may not.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
)

metadata = MetaData()

parties = Table(
    "parties",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("report", Text, nullable=False, default=""),
    Column("reported_ns", BigInteger, nullable=False, default=0),
    Column("online", Boolean, nullable=False, default=False),
    Column("since_ns", BigInteger, nullable=False, default=0),
    Column("instance", Text, nullable=False, default=""),
    Column("sequence", BigInteger, nullable=False, default=-1),
    Column("release", Text, nullable=False, default=""),
)
runbooks = Table(
    "runbooks",
    metadata,
    Column("name", Text, primary_key=True),
    Column("version", Text, primary_key=True),
    Column("text", Text, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
)
current_runbooks = Table(
    "current_runbooks",
    metadata,
    Column("name", Text, primary_key=True),
    Column("version", Text, nullable=False),
)
runs = Table(
    "runs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("mode", Text, nullable=False),
    Column("runbook", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("sources", Text, nullable=False),
    Column("started_by", Text, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("options", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("finished_ns", BigInteger, nullable=False),
    Column("started_proof", Text, nullable=False, server_default=""),
    Index("runs_by_time", "created_ns"),
    Index("runs_by_runbook", "runbook", "created_ns"),
)
holds = Table(
    "holds",
    metadata,
    Column("source", Text, primary_key=True),
    Column("run", Text, ForeignKey("runs.id"), nullable=False, index=True),
)
"""A source and the unfinished run that has it: the primary key lets one of two operators win."""

journal = Table(
    "journal",
    metadata,
    Column("run", Text, ForeignKey("runs.id"), primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("step", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("payload", Text, nullable=False),
)
requests = Table(
    "requests",
    metadata,
    Column("run", Text, ForeignKey("runs.id"), primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),
    Column("step", Text, nullable=False),
    Column("by", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("proof", Text, nullable=False, server_default=""),
    Column("roles", Text, nullable=False, server_default=""),
    Column("digest", Text, nullable=False, server_default=""),
)
leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("granted_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger, nullable=False),
)
"""Rows stay for ever, so that a token is never given twice. `owner` is empty when it was released."""

schedules = Table(
    "schedules",
    metadata,
    Column("name", Text, primary_key=True),
    Column("due_ns", BigInteger, nullable=False),
)
"""The newest due moment of each schedule that an orchestrator has taken on itself."""

documents = Table(
    "documents",
    metadata,
    Column("name", Text, primary_key=True),
    Column("text", Text, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
)
"""What every orchestrator has to find: accounts, upgrades of the fleet. Each is replaced whole."""

told = Table(
    "told",
    metadata,
    Column("about", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
)
"""What people were told last about a thing, so that no other orchestrator tells them again."""
