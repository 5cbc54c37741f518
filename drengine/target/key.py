"""Which key opens a store, for whoever opens it: a configuration's, DRENGINE_KEY_FILE, DRENGINE_CONFIG, or the
target's on this host."""

from __future__ import annotations

import os
from pathlib import Path

from drengine.config import parse
from drengine.config.chosen import CONFIG_VARIABLE, chosen_values
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
    return load_keks(_chosen(store) or _of_this_host(store), store)


def open_with_key(store: Path, *, read_only: bool | None) -> Store:
    """Open a store with the key that the environment or this host's target names for it, if any.

    Raises:
        DrengineError: as Store.open; KEY_UNUSABLE.
    """
    return Store.open(store, read_only=read_only, keks=keks_of(None, store))


def _chosen(store: Path) -> EncryptionOptions | None:
    """What the file that DRENGINE_CONFIG names says of this store; None where it says nothing, or of another.

    Raises:
        DrengineError: BAD_CONFIG.
    """
    values = chosen_values()
    if not isinstance(values.get("encryption"), dict) or not _is_same(Path(values["store"]), store):
        return None
    return parse(EncryptionOptions, values["encryption"], where=f"{CONFIG_VARIABLE}: [encryption]")


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _of_this_host(store: Path) -> EncryptionOptions:
    """What the target of this host uses, if that store is its own and its configuration can be read."""
    try:
        config = load_target_config(TARGET_CONFIG, {})
        return config.encryption if _is_same(config.store, store) else EncryptionOptions()
    except DrengineError:
        return EncryptionOptions()
