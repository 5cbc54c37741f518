"""What orchestrators share: documents that lay in each one's files, and what people were told already."""

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, Text, inspect

revision = "0003"
down_revision = "0002"

_COUNTED = "drengine_version"


def upgrade() -> None:
    """Programs that counted in `drengine_version` refuse a count above theirs, and say so."""
    op.create_table(
        "documents",
        Column("name", Text, primary_key=True),
        Column("text", Text, nullable=False),
        Column("at_ns", BigInteger, nullable=False),
    )
    op.create_table(
        "told",
        Column("about", Text, primary_key=True),
        Column("state", Text, nullable=False),
        Column("at_ns", BigInteger, nullable=False),
    )
    if _COUNTED not in inspect(op.get_bind()).get_table_names():
        op.create_table(_COUNTED, Column("version", Integer, primary_key=True))
    op.execute(f"DELETE FROM {_COUNTED}")
    op.execute(f"INSERT INTO {_COUNTED} (version) VALUES (3)")
