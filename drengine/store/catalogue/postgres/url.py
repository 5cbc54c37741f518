"""The URL by which a catalogue in PostgreSQL is named: it lies in STORE files and is shown, so it holds no secret."""

from __future__ import annotations

from typing import Any

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from drengine.model.errors import DrengineError
from drengine.store.errors import CATALOGUE_URL

_SCHEMES = ("postgresql://", "postgres://")
_SECRET = frozenset({"password", "sslpassword"})
_REFUSED = frozenset({"options", "replication", "client_encoding"})
"""What would change how the session works."""
_DEFAULTS = {
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "8000",
}
"""So that a server or a network that is gone is noticed within seconds."""


def connection_settings(url: str) -> dict[str, Any]:
    """What libpq is told.

    Raises:
        DrengineError: CATALOGUE_URL: it names no database of PostgreSQL, or holds a secret.
    """
    if not url.startswith(_SCHEMES) or "\0" in url:
        raise DrengineError(CATALOGUE_URL, "the catalogue's URL does not begin with postgresql://")
    try:
        found = conninfo_to_dict(url)
    except (ProgrammingError, UnicodeError) as error:
        raise DrengineError(CATALOGUE_URL, "the catalogue's URL cannot be understood") from error
    if secret := _SECRET & found.keys():
        raise DrengineError(CATALOGUE_URL, f"the catalogue's URL holds a {min(secret)}")
    if refused := _REFUSED & found.keys():
        raise DrengineError(CATALOGUE_URL, f"the catalogue's URL may not set {min(refused)!r}")
    if not found.get("dbname") and not found.get("service"):
        raise DrengineError(CATALOGUE_URL, "the catalogue's URL names no database")
    return {**_DEFAULTS, **found}
