"""SQLite's version 8: points that nobody may remove before their time, and the clock by which it passes."""

from alembic import op

revision = "0004"
down_revision = "0003"

_NAME = 'text COLLATE "C" NOT NULL'
_TABLES = {
    "point_lock": (
        f"source {_NAME}, branch bigint NOT NULL, sequence bigint NOT NULL, made_ns bigint NOT NULL, "
        "until_ns bigint NOT NULL",
        "source, branch, sequence",
    ),
    "lock_policy": (f"source {_NAME}, every_seconds bigint NOT NULL, for_seconds bigint NOT NULL", "source"),
    "clock": (f"boot {_NAME}, since_boot_ns bigint NOT NULL, reading_ns bigint NOT NULL", "boot"),
}


def upgrade() -> None:
    """From 0003."""
    for name, (columns, keys) in _TABLES.items():
        op.execute(f"CREATE TABLE {name} ({columns}, checksum bigint NOT NULL, PRIMARY KEY ({keys}))")
