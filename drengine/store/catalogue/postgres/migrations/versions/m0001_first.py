"""Rows as in SQLite's version 6; partitions in place of its epoch and head; the store's identity; locks and leases."""

from alembic import op

revision = "0001"
down_revision = None

_NAME = 'text COLLATE "C" NOT NULL'
_TABLES = {
    "source": (f"name {_NAME}, generation bigint NOT NULL, active_branch bigint NOT NULL", "name"),
    "branch": (
        f"source {_NAME}, branch bigint NOT NULL, parent bigint NOT NULL, base_sequence bigint NOT NULL, "
        "generation bigint NOT NULL, role text NOT NULL, label text NOT NULL, closed bigint NOT NULL, "
        "created_ns bigint NOT NULL, superseded_ns bigint NOT NULL, durable_sequence bigint NOT NULL, "
        "durable_epoch bytea NOT NULL, durable_position bigint NOT NULL, geometry bytea NOT NULL",
        "source, branch",
    ),
    "segment": (
        f"source {_NAME}, branch bigint NOT NULL, segment bigint NOT NULL, revision bigint NOT NULL, "
        "state text NOT NULL, first_sequence bigint NOT NULL, last_sequence bigint NOT NULL, "
        "committed_length bigint NOT NULL, length bigint NOT NULL, plain_bytes bigint NOT NULL, "
        "dead_bytes bigint NOT NULL, seal bytea NOT NULL",
        "source, branch, segment",
    ),
    "point": (
        f"source {_NAME}, branch bigint NOT NULL, sequence bigint NOT NULL, time_ns bigint NOT NULL, "
        "received_ns bigint NOT NULL, kind text NOT NULL, label text NOT NULL, geometry bytea NOT NULL, "
        "verified_ns bigint NOT NULL, damaged bigint NOT NULL, pinned bigint NOT NULL, note text NOT NULL",
        "source, branch, sequence",
    ),
    "damage": (
        f"source {_NAME}, branch bigint NOT NULL, segment bigint NOT NULL, record bigint NOT NULL, "
        "sequence bigint NOT NULL, found_ns bigint NOT NULL, reason text NOT NULL",
        "source, branch, segment, record",
    ),
    "removal": (
        f"source {_NAME}, branch bigint NOT NULL, segment bigint NOT NULL, revision bigint NOT NULL",
        "source, branch, segment, revision",
    ),
    "access_grant": (
        f"id {_NAME}, source {_NAME}, branch bigint NOT NULL, sequence bigint NOT NULL, access text NOT NULL, "
        "holder text NOT NULL, instance text NOT NULL, secret bytea NOT NULL, issued_ns bigint NOT NULL, "
        "expires_ns bigint NOT NULL",
        "id",
    ),
    "part": (
        f"source {_NAME}, name {_NAME}, begin bigint NOT NULL, length bigint NOT NULL, file text NOT NULL, "
        "object text NOT NULL, digest bytea NOT NULL, holder text NOT NULL",
        "source, name, begin",
    ),
    "mirror": (
        f"source {_NAME}, state text NOT NULL, origin text NOT NULL, lineage bigint NOT NULL, as_of_ns bigint NOT NULL",
        "source",
    ),
    "object_removal": (f"source {_NAME}, key {_NAME}, decided_ns bigint NOT NULL", "source, key"),
    "partition": (
        f"source {_NAME}, lineage bigint NOT NULL, number bigint NOT NULL, stamp bytea NOT NULL, "
        "sum bytea NOT NULL, tag bytea NOT NULL",
        "source",
    ),
}
_OFTEN_CHANGED = ("branch", "segment", "part", "partition")
"""Their rows are changed at each commit: room on the page keeps that from touching any index."""


def upgrade() -> None:
    """From nothing."""
    for name, (columns, keys) in _TABLES.items():
        room = " WITH (fillfactor = 50)" if name in _OFTEN_CHANGED else ""
        op.execute(f"CREATE TABLE {name} ({columns}, checksum bigint NOT NULL, PRIMARY KEY ({keys})){room}")
    op.execute("CREATE INDEX grants_by_source ON access_grant (source)")
    op.execute(
        "CREATE TABLE store (one boolean PRIMARY KEY DEFAULT true CHECK (one), identity bytea NOT NULL, "
        "storage text NOT NULL, place text NOT NULL, ready boolean NOT NULL)"
    )
    op.execute("CREATE SEQUENCE token AS bigint")
    op.execute(
        f"CREATE TABLE lock (name {_NAME} PRIMARY KEY, holder text NOT NULL, addresses text[] NOT NULL, "
        "token bigint NOT NULL, expires timestamptz NOT NULL) WITH (fillfactor = 50)"
    )
    op.execute(
        f"CREATE TABLE lease (id bigint PRIMARY KEY, source {_NAME}, branch bigint NOT NULL, "
        "sequence bigint NOT NULL, holder text NOT NULL, expires timestamptz NOT NULL) WITH (fillfactor = 50)"
    )
