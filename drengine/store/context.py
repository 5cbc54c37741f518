"""What the parts of one open store share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from drengine.model.clock import Clock
from drengine.store.blobs import Storage
from drengine.store.catalogue.interface import Catalogue
from drengine.store.keys import StoreKeys
from drengine.store.locks import Locks
from drengine.store.options import StoreOptions
from drengine.store.place import Place
from drengine.store.targets import Targets
from drengine.store.views.records import Records
from drengine.store.views.stack import Layers


@dataclass(frozen=True, slots=True)
class StoreContext:
    """An open store.

    Attributes:
        directory: where the identity, the catalogue and the locks are.
        identity: 16 bytes that name the store.
        place: whether it still lies where it was opened.
        storage: where the segments are.
        keys: what encrypts and decrypts the segments.
        catalogue: the connection for reading and administration; each writer has its own (`Catalogue.another`).
        locks: between this process and the others that use the store.
        targets: the targets that use it, where there may be several.
        manifests_ns: when this process last wrote a manifest of a source, by its clock.
    """

    directory: Path
    identity: bytes
    place: Place
    read_only: bool
    options: StoreOptions
    clock: Clock
    storage: Storage
    keys: StoreKeys
    catalogue: Catalogue
    locks: Locks
    targets: Targets
    records: Records
    layers: Layers
    manifests_ns: dict[str, int] = field(default_factory=dict)
