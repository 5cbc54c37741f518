"""How it was proved who asked, and what an approval is about."""

from alembic import op
from sqlalchemy import Column, Text, inspect

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Some registries that count 1 have the columns: programs of 0002 made new tables with them."""
    for table, names in (("runs", ("started_proof",)), ("requests", ("proof", "roles", "digest"))):
        there = {each["name"] for each in inspect(op.get_bind()).get_columns(table)}
        for name in names:
            if name not in there:
                op.add_column(table, Column(name, Text, nullable=False, server_default=""))
