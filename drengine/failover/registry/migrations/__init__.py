"""The registry's schema over time. Each module of `versions/` leads from one version to the next; those that are
released never change. Alembic orders and runs them; `tables.py` describes what the newest one leaves.

A database is brought to the newest version in one transaction, so whatever ends the process leaves the old version or
the new one. Whoever opens an up-to-date registry waits for no lock, and for no import of alembic.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Column, Connection, MetaData, String, Table, inspect, select, text

NEWEST = "0003"
VERSIONS = Path(__file__).parent / "versions"
VERSION_TABLE = "registry_version"
"""A name of our own: a catalogue may be kept in the same database."""
LEGACY_TABLE = "drengine_version"
"""Registries before 0003 counted in it. It stays, with a count that programs of that time refuse as newer."""
COUNTED_MAX = 2

_version = Table(VERSION_TABLE, MetaData(), Column("version_num", String(32)))


def version_of(connection: Connection) -> str | None:
    """Of this database; None for one without a registry."""
    there = set(inspect(connection).get_table_names())
    if VERSION_TABLE in there:
        found = connection.execute(select(_version.c.version_num)).scalar_one_or_none()
        if found is not None:
            return str(found)
    if LEGACY_TABLE in there:
        counted = connection.execute(text(f"SELECT version FROM {LEGACY_TABLE}")).scalar_one_or_none()
        return None if counted is None else f"{counted:04d}" if counted <= COUNTED_MAX else str(counted)
    return None
