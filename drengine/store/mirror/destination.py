"""Where a copy goes: a new place, a copy that is there, or a directory that was shipped; never anything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from drengine.crypt.kek import KeyEncryptionKeys
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.store.blobs import ObjectStorage
from drengine.store.blobs.available import S3, StorageName
from drengine.store.blobs.s3.options import S3Options
from drengine.store.blobs.storage import content
from drengine.store.catalogue.interface import Catalogue
from drengine.store.catalogue.opening import replacing
from drengine.store.catalogue.rows import COPY, MirrorRow
from drengine.store.catalogue.seal import CATALOGUE_KEY
from drengine.store.copies import WHOLE, mark
from drengine.store.errors import MIRROR_PARTED, NOT_ITS_COPY
from drengine.store.identity import IDENTITY_NAME, read_identity, read_store_file
from drengine.store.locks.flock import FileLocks
from drengine.store.mirror.difference import SourceRows
from drengine.store.names import MANIFESTS, STORE_KEYS
from drengine.store.options import StoreOptions
from drengine.store.store import Store


@contextmanager
def opened_copy(
    origin: Store,
    destination: Path,
    *,
    keks: KeyEncryptionKeys | None = None,
    options: StoreOptions | None = None,
    clock: Clock | None = None,
    may_make: bool = True,
    place: str = "",
    storage_options: S3Options | None = None,
) -> Iterator[Store]:
    """The copy of a store at a place, made or taken over if need be; nobody else mirrors to it meanwhile.

    With `place` its segments and manifests lie in an object store, and only the rest in the directory.

    A directory that holds the store as it was earlier, such as a disk that was shipped, is taken over: nothing of it
    counts until it has been compared with the original.

    Raises:
        DrengineError: NOT_ITS_COPY, MIRROR_PARTED, MIRROR_BUSY; STORE_EXISTS and others of a store; NOT_A_STORE where
            there is none and none may be made.
    """
    if may_make and not (destination / IDENTITY_NAME).exists():
        keyring = content(origin.context.storage, STORE_KEYS)
        Store.create(
            destination,
            identity=origin.identity,
            keyring=keyring,
            keks=keks,
            options=options,
            clock=clock,
            stored_in=StorageName(S3, place) if place else None,
            storage_options=storage_options,
        ).close()
    if read_identity(destination) != origin.identity:
        raise DrengineError(NOT_ITS_COPY, f"{destination} holds another store")
    if destination.samefile(origin.directory):
        raise DrengineError(NOT_ITS_COPY, f"{destination} is the store itself")
    found = read_store_file(destination).storage
    if place and found != StorageName(S3, place):
        raise DrengineError(NOT_ITS_COPY, f"{destination} has its segments elsewhere: {found.place or found.name}")
    reopened = partial(
        Store.open, destination, keks=keks, options=options, clock=clock, storage_options=storage_options
    )
    with FileLocks(destination).mirror():
        with reopened() as copy:
            if not _is_to_be_compared(origin.context.catalogue, copy):
                mark(destination, is_copy=True)
                yield copy
                return
        _begin_anew(destination, reopened)
        mark(destination, is_copy=True)
        with reopened() as copy:
            yield copy


def _is_to_be_compared(origin: Catalogue, copy: Store) -> bool:
    """Whether what lies there was not put there by a mirror; a store without any content becomes a copy at once.

    Raises:
        DrengineError: MIRROR_PARTED, NOT_ITS_COPY.
    """
    catalogue = copy.context.catalogue
    row = catalogue.mirrored().get(WHOLE)
    if row is not None:
        if row.state != COPY:
            raise DrengineError(MIRROR_PARTED, f"{copy.directory} has become a store of its own")
        return False
    for source in catalogue.sources():
        _require_older(SourceRows.read(origin, source.name), SourceRows.read(catalogue, source.name), copy.directory)
    if catalogue.sources() and not isinstance(copy.context.storage, ObjectStorage):
        return True
    # What lies in an object store is known by its rows, which a rebuild has made from it.
    with catalogue.transaction():
        catalogue.put(MirrorRow(WHOLE, COPY, "", 0, 0))
    return False


def _require_older(theirs: SourceRows, mine: SourceRows, destination: Path) -> None:
    """Return when a source in a directory is the original's at an earlier moment.

    Raises:
        DrengineError: NOT_ITS_COPY.
    """
    name = mine.source.name if mine.source else ""
    if theirs.source is None or (mine.source and mine.source.generation > theirs.source.generation):
        raise DrengineError(NOT_ITS_COPY, f"{destination} has a generation of {name!r} that the store does not have")
    for number, row in mine.branches.items():
        known = theirs.branches.get(number)
        same = known and (known.parent, known.base_sequence, known.role, known.created_ns) == (
            row.parent,
            row.base_sequence,
            row.role,
            row.created_ns,
        )
        if not (known and same) or row.durable_sequence > known.durable_sequence:
            raise DrengineError(
                NOT_ITS_COPY, f"{destination} has data of branch {number} of {name!r} that the store does not have"
            )


def _begin_anew(destination: Path, reopened: Callable[[], Store]) -> None:
    """Put an empty catalogue in the place of the one that was shipped; the segments stay, and are compared."""
    with reopened() as shipped:
        key = shipped.context.keys.store_key(CATALOGUE_KEY)
        storage = shipped.context.storage
    with replacing(destination, read_store_file(destination), key) as made:
        made.catalogue.put(MirrorRow(WHOLE, COPY, "", 0, 0))
    for name in storage.list(f"{MANIFESTS}/"):
        storage.delete(name)
