"""What each source is made of, as its agent told last: kept in the catalogue, to be there when the source is not.

There is one row of each source, which its manifests repeat and mirrors copy. In an encrypted store the document is
encrypted under the source's newest data key (AES-256-GCM), and goes with its keys.
"""

from __future__ import annotations

import secrets
from contextlib import suppress

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from drengine.crypt.errors import KEY_MISSING
from drengine.crypt.kek import NONCE_BYTES, derive
from drengine.crypt.keyring import DataKey
from drengine.model.errors import DrengineError
from drengine.model.inventory import Inventory, pack_inventory, parse_inventory
from drengine.store.catalogue.interface import Catalogue
from drengine.store.catalogue.rows import InventoryRow
from drengine.store.context import StoreContext
from drengine.store.errors import CATALOGUE_DAMAGED
from drengine.store.names import keys_name
from drengine.store.rebuild.manifest import is_manifest_old, write_manifest


def read_inventory(context: StoreContext, source: str) -> Inventory | None:
    """See Store.inventory."""
    context.catalogue.source(source)
    row = context.catalogue.inventory(source)
    return _opened(context, row) if row else None


def keep_inventory(context: StoreContext, source: str, inventory: Inventory, generation: int) -> None:
    """See Store.keep_inventory. A manifest follows when it says something new, but not for each of many changes."""
    catalogue, before = context.catalogue, None
    with suppress(DrengineError):  # one that can't be read is replaced like any other
        before = read_inventory(context, source)
    row = _closed(context, source, inventory)
    with catalogue.transaction(source):
        catalogue.require_writable(source, catalogue.source(source).active_branch, generation)
        catalogue.put(row)
    if before is None or (before.lasting != inventory.lasting and is_manifest_old(context, source)):
        write_manifest(context, source)


def forget_inventory(catalogue: Catalogue, source: str) -> None:
    """Forget what a source is made of, inside a transaction."""
    if row := catalogue.inventory(source):
        catalogue.remove(row)


def encrypt_inventories(context: StoreContext) -> None:
    """Encrypt those that are in clear, in a store that is encrypted from now on."""
    for source in context.catalogue.sources():
        row = context.catalogue.inventory(source.name)
        if row and not row.data_key:
            closed = _closed(context, source.name, _opened(context, row))
            with context.catalogue.transaction(source.name):
                context.catalogue.put(closed)


def _closed(context: StoreContext, source: str, inventory: Inventory) -> InventoryRow:
    document = pack_inventory(inventory)
    context.keys.ensure(context.locks, context.catalogue, source, context.clock.now_ns())
    if not context.keys.is_encrypted:
        return InventoryRow(source, b"", document)
    key = context.keys.reread(source).newest
    if key is None:
        raise DrengineError(KEY_MISSING, f"{keys_name(source)} is missing")
    nonce = secrets.token_bytes(NONCE_BYTES)
    return InventoryRow(source, key.id, nonce + _cipher(context, key, source).encrypt(nonce, document, None))


def _opened(context: StoreContext, row: InventoryRow) -> Inventory:
    document = row.document
    if row.data_key:
        key = context.keys.reread(row.source).find(row.data_key)
        if key is None or key.erased_ns:
            raise DrengineError(KEY_MISSING, f"the inventory of {row.source!r} needs data key {row.data_key.hex()}")
        cipher = _cipher(context, key, row.source)
        try:
            document = cipher.decrypt(document[:NONCE_BYTES], document[NONCE_BYTES:], None)
        except (InvalidTag, ValueError) as error:
            raise DrengineError(CATALOGUE_DAMAGED, f"the inventory of {row.source!r} was altered") from error
    try:
        return parse_inventory(document)
    except ValueError as error:
        raise DrengineError(CATALOGUE_DAMAGED, f"the inventory of {row.source!r}: {error}") from error


def _cipher(context: StoreContext, key: DataKey, source: str) -> AESGCM:
    """Its key is of this store and source alone; random nonces do for the few documents of a data key's life."""
    return AESGCM(derive(key.secret, b"drengine inventory\n" + context.identity + source.encode()))
