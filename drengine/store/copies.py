"""A copy of a store (mirror/): who may change it, and how it becomes a store of its own.

Only the mirror writes what a copy has of its original. Beside it, branches for drills may grow, under numbers that
the original never gives out, and they go again; what is known of the copy's own bytes (damage, verified points) is the
copy's own. The first promotion parts the copy from its original, in the promotion's own transaction.
"""

from __future__ import annotations

from pathlib import Path

from drengine.model.errors import DrengineError
from drengine.store.catalogue.interface import Catalogue
from drengine.store.catalogue.rows import COPY, PARTED, MirrorRow
from drengine.store.errors import STORE_IS_COPY
from drengine.store.identity import read_store_file, write_store_file

LOCAL_BRANCHES = 50_000_000
"""Branches that are made at a copy have this number or a greater one."""
WHOLE = ""
"""The name under which the store as a whole is in the table `mirror`."""


def copy_row(catalogue: Catalogue) -> MirrorRow | None:
    """What is known of the original, while the store is a copy; None for any other store."""
    row = catalogue.mirrored().get(WHOLE)
    return row if row and row.state == COPY else None


def require_own(catalogue: Catalogue, doing: str) -> None:
    """Return where the store is no copy.

    Raises:
        DrengineError: STORE_IS_COPY.
    """
    if row := copy_row(catalogue):
        raise DrengineError(STORE_IS_COPY, f"the store is a copy of {row.origin}: {doing}")


def part(catalogue: Catalogue, directory: Path) -> None:
    """Make a copy a store of its own, inside a transaction; the mirror refuses it from then on.

    Its STORE file says so first: a catalogue that is lost in between and made anew is not a copy's.
    """
    if row := copy_row(catalogue):
        mark(directory, is_copy=False)
        catalogue.put(row._replace(state=PARTED))


def mark(directory: Path, *, is_copy: bool) -> None:
    """Have the STORE file say what the store is."""
    file = read_store_file(directory)
    if file.is_copy != is_copy:
        write_store_file(directory, file._replace(is_copy=is_copy))


def first_number(catalogue: Catalogue) -> int:
    """The least number that a new branch may have."""
    return LOCAL_BRANCHES if copy_row(catalogue) else 1
