"""Which key opens a store, for whoever opens it: a configuration's, DRENGINE_KEY_FILE, or the target's on this host."""

from __future__ import annotations

import os
from pathlib import Path

from drengine.crypt.kek import KeyEncryptionKeys
from drengine.crypt.options import KEY_FILE_VARIABLE, EncryptionOptions, load_keks
from drengine.model.errors import DrengineError
from drengine.store.store import Store
from drengine.target.config import load_target_config

TARGET_CONFIG = Path("/etc/drengine/target.toml")


def keks_of(given: EncryptionOptions | None, store: Path) -> KeyEncryptionKeys | None:
    """The key-encryption keys for a store; None where nothing names any.

    Raises:
        DrengineError: KEY_UNUSABLE, BAD_CONFIG.
    """
    if given is not None and given.is_on:
        return load_keks(given, store)
    if path := os.environ.get(KEY_FILE_VARIABLE):
        return load_keks(EncryptionOptions(key_file=Path(path)), store)
    return load_keks(_of_this_host(store), store)


def open_with_key(store: Path, *, read_only: bool | None) -> Store:
    """Open a store with the key that the environment or this host's target names for it, if any.

    Raises:
        DrengineError: as Store.open; KEY_UNUSABLE.
    """
    return Store.open(store, read_only=read_only, keks=keks_of(None, store))


def _of_this_host(store: Path) -> EncryptionOptions:
    """What the target of this host uses, if that store is its own and its configuration can be read."""
    try:
        config = load_target_config(TARGET_CONFIG, {})
        return config.encryption if config.store.samefile(store) else EncryptionOptions()
    except (DrengineError, OSError):
        return EncryptionOptions()
