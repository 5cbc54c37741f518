"""Whose a place is: an object ``STORE/<identity>`` that names the store, written when the store is made.

Two stores that are made there at once both write theirs, and both see two: neither is made. Each later opening looks
again, since a listing may be late.
"""

from __future__ import annotations

import json

from drengine.model.errors import DrengineError
from drengine.store.blobs.s3.client import ObjectClient
from drengine.store.blobs.s3.errors import (
    OBJECT_MISSING,
    OBJECT_STORE_AWAY,
    OBJECT_STORE_BUSY,
    OBJECT_STORE_TAKEN,
)

CLAIMS = "STORE/"
FORMAT_NAME = "drengine replica store"


def claim(client: ObjectClient, where: str, identity: bytes) -> None:
    """Take an empty place.

    Raises:
        DrengineError: OBJECT_STORE_TAKEN.
    """
    found = next(iter(client.list("")), None)
    if found is not None:
        raise DrengineError(OBJECT_STORE_TAKEN, f"{where} is not empty: there is {found.key[:120]!r}")
    document = {"format": FORMAT_NAME, "version": 1, "id": identity.hex()}
    client.put(CLAIMS + identity.hex(), json.dumps(document).encode() + b"\n")
    _require_alone(client, where, identity)


def require_claimed(client: ObjectClient, where: str, identity: bytes) -> None:
    """Return when a place is this store's alone, or when it does not answer: then it is told by what needs it.

    Raises:
        DrengineError: OBJECT_STORE_TAKEN, OBJECT_MISSING.
    """
    try:
        _require_alone(client, where, identity)
    except DrengineError as error:
        if error.kind not in (OBJECT_STORE_AWAY, OBJECT_STORE_BUSY):
            raise


def identities(client: ObjectClient) -> list[str]:
    """The stores that have claimed a place, as hexadecimal digits."""
    return [found.key.removeprefix(CLAIMS) for found in client.list(CLAIMS)]


def _require_alone(client: ObjectClient, where: str, identity: bytes) -> None:
    others = [each for each in identities(client) if each != identity.hex()]
    if others:
        raise DrengineError(OBJECT_STORE_TAKEN, f"{where} is of store {others[0][:32]}, this is {identity.hex()}")
    try:
        client.head(CLAIMS + identity.hex())
    except FileNotFoundError:
        raise DrengineError(OBJECT_MISSING, f"{where} does not name store {identity.hex()}, nor any other") from None
