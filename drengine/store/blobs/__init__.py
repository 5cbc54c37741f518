"""Where a store's files lie: one interface; a local directory and memory behind it, and a wrapper that fails."""

from drengine.store.blobs.faulty import Call, Fault, FaultyStorage, fail_from
from drengine.store.blobs.local import LocalStorage
from drengine.store.blobs.memory import MemoryStorage
from drengine.store.blobs.storage import Abilities, Appender, Buffer, Reader, Storage

__all__ = [
    "Abilities",
    "Appender",
    "Buffer",
    "Call",
    "Fault",
    "FaultyStorage",
    "LocalStorage",
    "MemoryStorage",
    "Reader",
    "Storage",
    "fail_from",
]
