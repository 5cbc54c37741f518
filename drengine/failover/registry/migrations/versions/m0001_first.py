"""Parties, runbooks, runs with their journals and requests, leases and schedules."""

from alembic import op
from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Integer, Text

revision = "0001"
down_revision = None


def upgrade() -> None:
    """From nothing."""
    op.create_table(
        "parties",
        Column("kind", Text, primary_key=True),
        Column("name", Text, primary_key=True),
        Column("report", Text, nullable=False),
        Column("reported_ns", BigInteger, nullable=False),
        Column("online", Boolean, nullable=False),
        Column("since_ns", BigInteger, nullable=False),
        Column("instance", Text, nullable=False),
        Column("sequence", BigInteger, nullable=False),
        Column("release", Text, nullable=False),
    )
    op.create_table(
        "runbooks",
        Column("name", Text, primary_key=True),
        Column("version", Text, primary_key=True),
        Column("text", Text, nullable=False),
        Column("at_ns", BigInteger, nullable=False),
    )
    op.create_table("current_runbooks", Column("name", Text, primary_key=True), Column("version", Text, nullable=False))
    op.create_table(
        "runs",
        Column("id", Text, primary_key=True),
        *(Column(name, Text, nullable=False) for name in ("mode", "runbook", "version", "sources", "started_by")),
        Column("created_ns", BigInteger, nullable=False),
        *(Column(name, Text, nullable=False) for name in ("options", "state", "outcome", "reason")),
        Column("finished_ns", BigInteger, nullable=False),
    )
    op.create_index("runs_by_time", "runs", ["created_ns"])
    op.create_index("runs_by_runbook", "runs", ["runbook", "created_ns"])
    op.create_table(
        "holds",
        Column("source", Text, primary_key=True),
        Column("run", Text, ForeignKey("runs.id"), nullable=False),
    )
    op.create_index("ix_holds_run", "holds", ["run"])
    _create_what_runs_have()
    op.create_table("schedules", Column("name", Text, primary_key=True), Column("due_ns", BigInteger, nullable=False))


def _create_what_runs_have() -> None:
    op.create_table(
        "journal",
        Column("run", Text, ForeignKey("runs.id"), primary_key=True),
        Column("seq", Integer, primary_key=True, autoincrement=False),
        Column("step", Text, nullable=False),
        Column("event", Text, nullable=False),
        Column("attempt", Integer, nullable=False),
        Column("at_ns", BigInteger, nullable=False),
        Column("payload", Text, nullable=False),
    )
    op.create_table(
        "requests",
        Column("run", Text, ForeignKey("runs.id"), primary_key=True),
        Column("seq", Integer, primary_key=True, autoincrement=False),
        *(Column(name, Text, nullable=False) for name in ("kind", "step", "by", "note")),
        Column("at_ns", BigInteger, nullable=False),
    )
    op.create_table(
        "leases",
        Column("name", Text, primary_key=True),
        Column("owner", Text, nullable=False),
        *(Column(name, BigInteger, nullable=False) for name in ("token", "granted_ns", "expires_ns")),
    )
