"""The targets that share the store, and at which of them each source is or was last."""

from alembic import op

revision = "0003"
down_revision = "0002"

_NAME = 'text COLLATE "C" NOT NULL'


def upgrade() -> None:
    """From 0002."""
    op.execute(
        f"CREATE TABLE target (name {_NAME} PRIMARY KEY, addresses text[] NOT NULL, metrics text NOT NULL, "
        "version text NOT NULL, draining boolean NOT NULL, stopped boolean NOT NULL, seen timestamptz NOT NULL) "
        "WITH (fillfactor = 50)"
    )
    op.execute(f"CREATE TABLE placement (source {_NAME} PRIMARY KEY, target {_NAME})")
    op.execute("CREATE INDEX placement_by_target ON placement (target)")
