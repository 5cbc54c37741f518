"""Making and opening a store's parts, in the order in which each can be trusted by what was opened before it."""

from __future__ import annotations

import stat
from contextlib import ExitStack, suppress
from pathlib import Path

from drengine.crypt.errors import STORE_IN_CLEAR
from drengine.crypt.kek import KeyEncryptionKeys
from drengine.durable import ASIDE
from drengine.model.clock import Clock, SystemClock
from drengine.model.errors import DrengineError
from drengine.ownership import make_directory
from drengine.store.blobs import ObjectStorage, Storage
from drengine.store.blobs.available import S3, open_storage
from drengine.store.blobs.local import UNFINISHED
from drengine.store.blobs.s3.options import S3Options
from drengine.store.catalogue.interface import Catalogue
from drengine.store.catalogue.opening import open_catalogue
from drengine.store.catalogue.seal import CATALOGUE_KEY
from drengine.store.catalogue.sqlite import CATALOGUE_NAME, SIDE_SUFFIXES
from drengine.store.context import StoreContext
from drengine.store.errors import (
    NOT_A_STORE,
    STORAGE_MISMATCH,
    STORE_EXISTS,
    STORE_IDENTITY_DAMAGED,
)
from drengine.store.identity import IDENTITY_NAME, StoreFile, read_store_file, require_directory
from drengine.store.keys import StoreKeys
from drengine.store.locks import NOBODY, Holder
from drengine.store.locks.flock import LOCKS_DIRECTORY
from drengine.store.locks.opening import open_locks
from drengine.store.names import (
    EPOCH_NAME,
    KEYS,
    MANIFESTS,
    NOTES,
    SEGMENTS,
    STORE_KEYS,
)
from drengine.store.options import StoreOptions
from drengine.store.place import Place, is_writable
from drengine.store.rebuild.strays import require_current
from drengine.store.targets.opening import open_targets
from drengine.store.views.records import Records
from drengine.store.views.stack import Layers


def open_context(
    path: Path | str,
    keks: KeyEncryptionKeys | None,
    options: StoreOptions | None,
    clock: Clock | None,
    storage: Storage | None,
    storage_options: S3Options | None,
    *,
    read_only: bool | None = False,
    may_be_in_clear: bool = False,
    checks_all: bool = True,
    holder: Holder = NOBODY,
) -> StoreContext:
    """What `Store.open` opens; `may_be_in_clear`: also for somebody who is about to encrypt it."""
    directory = Path(path)
    require_directory(directory)
    file = read_store_file(directory)
    options = options or StoreOptions()
    if read_only is None:
        read_only = not is_writable(directory)
    if not read_only:
        _close_to_others(directory)
    with ExitStack() as opened:
        # First the catalogue: its rows may say where the storage has its files, and so the keys.
        catalogue = open_catalogue(directory, file, read_only=read_only)
        opened.callback(catalogue.close)
        storage = storage or _opened_storage(directory, file, catalogue, storage_options, read_only=read_only)
        opened.callback(storage.close)
        keys = StoreKeys(storage, file.identity, keks)
        if keks and not keys.is_encrypted and not may_be_in_clear:
            raise DrengineError(STORE_IN_CLEAR, f"{directory} is not encrypted")
        # One whose encryption was interrupted has keys and no seal yet.
        catalogue.check(b"" if may_be_in_clear else keys.store_key(CATALOGUE_KEY), every_row=checks_all)
        place = Place(directory, file.identity, has_file=not file.catalogue)
        opened.callback(place.close)
        locks = open_locks(directory, file, holder)
        opened.callback(locks.close)
        targets = open_targets(file)
        opened.callback(targets.close)
        records = Records(storage, catalogue, options, keys)
        layers = Layers(storage, catalogue, records, options, read_only=read_only, key=keys.store_key("layers"))
        context = StoreContext(
            directory=directory,
            identity=file.identity,
            place=place,
            read_only=read_only,
            options=options,
            clock=clock or SystemClock(),
            storage=storage,
            keys=keys,
            catalogue=catalogue,
            locks=locks,
            targets=targets,
            records=records,
            layers=layers,
        )
        _confirm_epoch(context)
        opened.pop_all()
        return context


def _opened_storage(
    directory: Path, file: StoreFile, catalogue: Catalogue, options: S3Options | None, *, read_only: bool
) -> Storage:
    """The storage that the STORE file names, whose place is this store's and no other's."""
    if options not in (None, S3Options()) and file.storage.name != S3:
        kept = f"in storage {file.storage.name!r}"
        raise DrengineError(STORAGE_MISMATCH, f"[s3] is configured, and {directory} keeps its data {kept}")
    storage = open_storage(file.storage, directory, catalogue, options)
    if isinstance(storage, ObjectStorage) and not read_only:
        try:
            storage.require_claimed(file.identity)
        except BaseException:
            storage.close()
            raise
    return storage


def begin_storage(
    directory: Path,
    file: StoreFile,
    storage: Storage | None,
    storage_options: S3Options | None,
    keks: KeyEncryptionKeys | None,
    now_ns: int,
    keyring: bytes | None,
) -> None:
    """What a new store needs beside its segments before it is one: its keys, and the seal of its catalogue."""
    with ExitStack() as opened:
        catalogue = open_catalogue(directory, file)
        opened.callback(catalogue.close)
        if storage is None:
            storage = open_storage(file.storage, directory, catalogue, storage_options)
            opened.callback(storage.close)
        if isinstance(storage, ObjectStorage):
            storage.claim(file.identity)
        if keks:
            if keyring:
                storage.put(STORE_KEYS, keyring)
            keys = StoreKeys(storage, file.identity, keks, made_ns=0 if keyring else now_ns)
            catalogue.seal(keys.store_key(CATALOGUE_KEY))


def _confirm_epoch(context: StoreContext) -> None:
    """Where no epoch is noted beside the segments, hold the catalogue against them, and note it."""
    catalogue = context.catalogue
    if catalogue.is_shared or not catalogue.has_epochs or catalogue.noted_epoch() is not None:
        return
    require_current(context, strict=not catalogue.upgraded)
    if not context.read_only:
        catalogue.note_epoch(catalogue.epoch(), sync=True)


def readable_file(directory: Path) -> StoreFile | None:
    """What the STORE file says; None where it is lost: then the store is that of one directory."""
    try:
        return read_store_file(directory)
    except DrengineError as error:
        if error.kind not in (NOT_A_STORE, STORE_IDENTITY_DAMAGED):
            raise
        return None


def _close_to_others(directory: Path) -> None:
    """Take from strangers what an older version left open to them by the umask: they could read, and hold locks.

    Only by its owner and root; what a group may do is left as it is.
    """
    for name in (LOCKS_DIRECTORY, CATALOGUE_NAME, *(CATALOGUE_NAME + suffix for suffix in SIDE_SUFFIXES)):
        path = directory / name
        with suppress(FileNotFoundError, PermissionError):
            mode = path.lstat().st_mode
            if mode & stat.S_IRWXO and not stat.S_ISLNK(mode):
                path.chmod(stat.S_IMODE(mode) & ~stat.S_IRWXO)


def make_folders(directory: Path) -> None:
    """The folders of a store, in a directory that is empty but for what an interrupted `create` left."""
    _clear_unfinished(directory)
    for name in (LOCKS_DIRECTORY, SEGMENTS, MANIFESTS, NOTES):
        make_directory(directory / name)


def _clear_unfinished(directory: Path) -> None:
    """Accept a directory that is empty, or in which a `create` was interrupted before it became a store."""
    found = sorted(entry for entry in directory.iterdir() if entry.name != "lost+found")  # the root of an ext4
    ours = {LOCKS_DIRECTORY, SEGMENTS, MANIFESTS, KEYS, NOTES, CATALOGUE_NAME, f"{IDENTITY_NAME}{ASIDE}"}
    ours |= {f"{CATALOGUE_NAME}{suffix}" for suffix in SIDE_SUFFIXES}
    epoch = directory / EPOCH_NAME
    made = [epoch, *(directory / f"{STORE_KEYS}{suffix}" for suffix in ("", UNFINISHED))]
    inside = [entry for folder in found if folder.is_dir() for entry in folder.iterdir() if entry not in made]
    if inside or any(entry.name not in ours or entry.is_symlink() for entry in found):
        raise DrengineError(STORE_EXISTS, f"{directory} is not empty")
    for entry in made:
        entry.unlink(missing_ok=True)
    for entry in found:
        if entry.is_dir():
            entry.rmdir()
        else:
            entry.unlink()
