"""What can be wrong with keys."""

from __future__ import annotations

from drengine.model.errors import error_kind

KEY_NEEDED = error_kind(
    "key-needed",
    200,
    "The store is encrypted, and no key-encryption key was given.",
    "Name the key under [encryption] in /etc/drengine/target.toml, or set DRENGINE_KEY_FILE.",
)
KEY_UNUSABLE = error_kind(
    "key-unusable",
    201,
    "The key-encryption key can't be had from where the configuration says that it is.",
    "Mend what the message names; nothing in the store was changed. docs/operations.md says how a key is kept.",
)
KEY_WRONG = error_kind(
    "key-wrong",
    202,
    "The key-encryption key is not the one that the store's keys are wrapped with, or their file was altered.",
    "Give the key that was in use (`previous_key_files` takes older ones), or put back the altered file from a copy.",
)
KEY_MISSING = error_kind(
    "key-missing",
    203,
    "A data key that the store's segments were encrypted with is not there.",
    "Put back the file that the message names from a copy of the store's keys; until then nothing of it is removed.",
)
SOURCE_ERASED = error_kind(
    "source-erased",
    204,
    "The data keys of this source were forgotten: what they encrypted can never be read again.",
    "Choose a point that was made since (`drengine points`).",
    final=True,
)
STORE_TAMPERED = error_kind(
    "store-tampered",
    205,
    "Somebody without the store's key has changed its catalogue.",
    "Keep a copy for whoever looks into it; then run `drengine rebuild` on the store, and `drengine scrub`.",
)
STORE_IN_CLEAR = error_kind(
    "store-in-clear",
    206,
    "Encryption is configured, and the store is not encrypted.",
    "If you mean to encrypt it from now on, run `drengine keys init`; if it was encrypted, somebody has changed it.",
)
