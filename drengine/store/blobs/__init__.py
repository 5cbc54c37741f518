"""Where a store's files lie: one interface; a local directory and memory behind it, and a wrapper that fails."""

from drengine.store.blobs.faulty import Call, Fault, FaultyStorage, fail_from
from drengine.store.blobs.index import NO_CHANGES, Changes
from drengine.store.blobs.local import LocalStorage
from drengine.store.blobs.memory import MemoryStorage
from drengine.store.blobs.storage import (
    Abilities,
    Appender,
    Backlog,
    Buffer,
    ObjectStorage,
    Reader,
    Storage,
    has_copies,
    past_copies,
)

__all__ = [
    "NO_CHANGES",
    "Abilities",
    "Appender",
    "Backlog",
    "Buffer",
    "Call",
    "Changes",
    "Fault",
    "FaultyStorage",
    "LocalStorage",
    "MemoryStorage",
    "ObjectStorage",
    "Reader",
    "Storage",
    "fail_from",
    "has_copies",
    "past_copies",
]
