"""SQLite's version 9: what each source is made of."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """From 0004."""
    op.execute(
        'CREATE TABLE inventory (source text COLLATE "C" NOT NULL, data_key bytea NOT NULL, document bytea NOT NULL, '
        "checksum bigint NOT NULL, PRIMARY KEY (source))"
    )
