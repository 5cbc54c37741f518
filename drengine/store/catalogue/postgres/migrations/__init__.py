"""The schema over time. Each module of `versions/` leads from one version to the next; those that are released never
change. Alembic orders and runs them, in one transaction: whatever ends it leaves the old version or the new one.

Whoever opens an up-to-date catalogue waits for no lock, and for no import of alembic.
"""

from __future__ import annotations

from pathlib import Path

NEWEST = "0005"
VERSIONS = Path(__file__).parent / "versions"
VERSION_TABLE = "catalogue_version"
