"""Where a store's files lie: one interface, a local directory and memory behind it."""

from drengine.store.blobs.local import LocalStorage
from drengine.store.blobs.memory import MemoryStorage
from drengine.store.blobs.storage import Abilities, Appender, Reader, Storage

__all__ = ["Abilities", "Appender", "LocalStorage", "MemoryStorage", "Reader", "Storage"]
