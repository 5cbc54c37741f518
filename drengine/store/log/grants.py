"""Grants: who may use a branch, a point, or a source's way home, beyond what the source's own replication needs.

A grant is for a party (its role and name, proved by its certificate) or for whoever shows a secret, of which only the
digest rests here. It lives until it is taken back, its time is over, or its branch is closed or left behind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from drengine.model.errors import DrengineError
from drengine.model.grants import Access, Grant, secret_digest
from drengine.store.catalogue.interface import Catalogue
from drengine.store.catalogue.rows import GrantRow
from drengine.store.context import StoreContext
from drengine.store.errors import UNKNOWN_BRANCH

_NS = 1_000_000_000


class Grants:
    """The grants of a store."""

    def __init__(self, context: StoreContext, require_writable: Callable[[], None]) -> None:
        self._context = context
        self._require_writable = require_writable

    def living(self) -> list[Grant]:
        """All that count now, oldest first."""
        now = self._context.clock.now_ns()
        rows = [row for row in self._context.catalogue.grants() if not _is_over(row, now)]
        return [_value(row) for row in sorted(rows, key=lambda row: row.issued_ns)]

    def give(
        self,
        source: str,
        branch: int,
        access: Access,
        *,
        holder: str = "",
        secret: str = "",
        sequence: int = 0,
        instance: str = "",
        seconds: float = 0.0,
    ) -> Grant:
        """Allow it, to a holder or to whoever shows the secret. Given again it is the same grant, with a new end.

        `seconds` is how long it lives; 0: until it is taken back.

        Raises:
            DrengineError: UNKNOWN_SOURCE, UNKNOWN_BRANCH (also when it is closed), STORE_READ_ONLY, STORE_FULL.
        """
        if bool(holder) == bool(secret):
            raise ValueError("a grant is for a holder, or for a secret")
        self._require_writable()
        catalogue, now = self._context.catalogue, self._context.clock.now_ns()
        key = "\n".join((source, f"{branch}-{sequence}", access, holder, instance, secret))
        row = GrantRow(
            id=hashlib.sha256(key.encode()).hexdigest()[:16],
            source=source,
            branch=branch,
            sequence=sequence,
            access=str(access),
            holder=holder,
            instance=instance,
            secret=secret_digest(secret) if secret else b"",
            issued_ns=now,
            expires_ns=now + int(seconds * _NS) if seconds else 0,
        )
        with catalogue.transaction(source):
            catalogue.source(source)
            if catalogue.branch(source, branch).closed:
                raise DrengineError(UNKNOWN_BRANCH, f"branch {branch} of {source!r} is closed")
            catalogue.remove(*(each for each in catalogue.grants() if each.source == source and _is_over(each, now)))
            catalogue.put(row)
        return _value(row)

    def take(self, matches: Callable[[Grant], bool]) -> list[Grant]:
        """Take back each one that matches, and return them: living connections end within seconds."""
        self._require_writable()
        catalogue = self._context.catalogue
        gone: list[GrantRow] = []
        for source in sorted({row.source for row in catalogue.grants() if matches(_value(row))}):
            with catalogue.transaction(source):
                going = [row for row in catalogue.grants() if row.source == source and matches(_value(row))]
                catalogue.remove(*going)
            gone += going
        return [_value(row) for row in gone]


def take_branch(catalogue: Catalogue, source: str, branch: int, *, points: bool) -> None:
    """Inside a transaction: nobody may use this branch any more, nor its points where that is said."""
    ours = [row for row in catalogue.grants() if (row.source, row.branch) == (source, branch)]
    catalogue.remove(*(row for row in ours if points or not row.sequence))


def _is_over(row: GrantRow, now_ns: int) -> bool:
    return bool(row.expires_ns) and row.expires_ns <= now_ns


def _value(row: GrantRow) -> Grant:
    return Grant(
        id=row.id,
        source=row.source,
        branch=row.branch,
        sequence=row.sequence,
        access=Access(row.access),
        holder=row.holder,
        instance=row.instance,
        expires_ns=row.expires_ns,
        issued_ns=row.issued_ns,
        secret_digest=row.secret,
    )
