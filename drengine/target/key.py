"""What opens a store, for whoever opens it: its key and its storage's options. A configuration says them; else
DRENGINE_KEY_FILE, what DRENGINE_CONFIG names, or the configuration of this host's target."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from drengine.config import parse
from drengine.config.chosen import CONFIG_VARIABLE, chosen_values
from drengine.crypt.kek import KeyEncryptionKeys
from drengine.crypt.options import KEY_FILE_VARIABLE, EncryptionOptions, load_keks
from drengine.model.errors import DrengineError
from drengine.store.blobs.s3.options import S3Options
from drengine.store.store import Store
from drengine.target.config import TargetConfig, load_target_config

S3_SECTION = "s3"
T = TypeVar("T")
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
    chosen = _chosen(store, "encryption", EncryptionOptions) or _of_this_host(store, lambda config: config.encryption)
    return load_keks(chosen or EncryptionOptions(), store)


def s3_of(given: S3Options | None, store: Path) -> S3Options:
    """How the store's objects are reached, where it has such a storage.

    Raises:
        DrengineError: BAD_CONFIG.
    """
    if given is not None and given != S3Options():
        return given
    chosen = _chosen(store, S3_SECTION, S3Options)
    return chosen or _of_this_host(store, lambda config: config.s3) or S3Options()


def open_with_key(store: Path, *, read_only: bool | None) -> Store:
    """Open a store with the key and the options that the environment or this host's target names for it, if any.

    To look at one in clear it is not read whole before: each row is checked when it is read.

    Raises:
        DrengineError: as Store.open; KEY_UNUSABLE.
    """
    return Store.open(
        store,
        read_only=read_only,
        keks=keks_of(None, store),
        storage_options=s3_of(None, store),
        checks_all=read_only is not True,
    )


def _chosen(store: Path, name: str, options: type[T]) -> T | None:
    """What the file that DRENGINE_CONFIG names says of this store; None where it says nothing, or of another.

    Raises:
        DrengineError: BAD_CONFIG.
    """
    values = chosen_values()
    if not isinstance(values.get(name), dict) or not _is_same(Path(values["store"]), store):
        return None
    return parse(options, values[name], where=f"{CONFIG_VARIABLE}: [{name}]")


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _of_this_host(store: Path, choose: Callable[[TargetConfig], T]) -> T | None:
    """What the target of this host uses, if that store is its own and its configuration can be read."""
    try:
        config = load_target_config(TARGET_CONFIG, {})
        return choose(config) if _is_same(config.store, store) else None
    except DrengineError:
        return None
