"""SQLite's version 7: by which roots a branch was last judged."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """From 0001."""
    op.execute(
        'CREATE TABLE judgement (source text COLLATE "C" NOT NULL, branch bigint NOT NULL, roots bytea NOT NULL, '
        "checksum bigint NOT NULL, PRIMARY KEY (source, branch))"
    )
