"""Trying an object store before it is used: each operation that a store needs, with a clear word on what fails."""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Callable

from drengine.model.errors import DrengineError
from drengine.store.blobs.s3.boto import BotoClient
from drengine.store.blobs.s3.claim import identities
from drengine.store.blobs.s3.client import ObjectClient
from drengine.store.blobs.s3.errors import OBJECT_DAMAGED, OBJECT_STORE_CLOCK, OBJECT_STORE_TAKEN
from drengine.store.blobs.s3.options import S3Options
from drengine.store.blobs.s3.place import S3Place
from drengine.store.blobs.storage import Trial

CHECKS = "check/"
SKEW_SECONDS_MAX = 300.0
"""AWS refuses signatures that are 15 minutes off; long before that something is wrong with a clock."""
_SMALL, _LARGE = 64 << 10, 8 << 20
_TIMES = 5


def try_place(place: S3Place, options: S3Options, identity: bytes | None = None) -> list[Trial]:
    """Try a place with objects of its own, which are deleted again.

    `identity` is of the store that is expected there; None: the place should be empty.
    """
    client = BotoClient(place, options)
    key = f"{CHECKS}{secrets.token_hex(8)}"
    trials = [
        _tried("list", lambda: _whose(client, str(place), identity)),
        _tried("clock", lambda: _clock(client)),
        _tried("object lock", client.object_lock),
    ]
    steps: list[tuple[str, Callable[[], str]]] = [
        ("put", lambda: _put(client, key)),
        ("head", lambda: f"{_equal(client.head(key), _SMALL, 'size')} bytes"),
        ("range", lambda: _range(client, key)),
        ("list again", lambda: _listed(client, key)),
        ("multipart", lambda: _multipart(client, f"{key}-parts")),
        ("throughput", lambda: _throughput(client, f"{key}-large")),
        ("delete", lambda: _delete(client, key)),
    ]
    for name, step in steps:
        trials.append(_tried(name, step))
        if name == "put" and not trials[-1].is_passed:
            break  # there is nothing to try the others on
    return trials


def _tried(name: str, step: Callable[[], str]) -> Trial:
    try:
        return Trial(name, step())
    except DrengineError as error:
        return Trial(name, error.message, error)
    except FileNotFoundError as error:
        return Trial(name, "it is not there", DrengineError(OBJECT_DAMAGED, f"{name}: what was put is gone: {error}"))


def _whose(client: ObjectClient, where: str, identity: bytes | None) -> str:
    found = identities(client)
    others = [each for each in found if identity is None or each != identity.hex()]
    if others:
        raise DrengineError(OBJECT_STORE_TAKEN, f"{where} is of store {others[0][:32]}")
    if identity:
        return f"store {identity.hex()}" if found else "no store's name is there"
    first = next((each.key for each in client.list("") if not each.key.startswith(CHECKS)), None)
    if first is not None:
        raise DrengineError(OBJECT_STORE_TAKEN, f"{where} is not empty: there is {first[:120]!r}")
    return "empty"


def _clock(client: BotoClient) -> str:
    skew = client.clock_skew_seconds()
    if abs(skew) > SKEW_SECONDS_MAX:
        raise DrengineError(OBJECT_STORE_CLOCK, f"the object store's clock is {skew:+.0f} s from this host's")
    return f"{skew:+.0f} s from this host's"


def _put(client: ObjectClient, key: str) -> str:
    data = secrets.token_bytes(_SMALL)
    times = []
    for number in range(_TIMES):
        began = time.monotonic()
        client.put(f"{key}" if not number else f"{key}-{number}", data)
        times.append(time.monotonic() - began)
    return f"{statistics.median(times) * 1000:.1f} ms for {_SMALL >> 10} KiB"


def _range(client: ObjectClient, key: str) -> str:
    began = time.monotonic()
    _equal(len(client.get(key, 1000, 4096)), 4096, "bytes of a range")
    return f"{(time.monotonic() - began) * 1000:.1f} ms for 4 KiB"


def _listed(client: ObjectClient, key: str) -> str:
    found = [each.key for each in client.list(key)]
    return "up to date" if key in found else "late: only rebuilding minds"


def _multipart(client: ObjectClient, key: str) -> str:
    upload = client.begin_upload(key)
    tag = client.put_part(key, upload, 1, b"part")
    client.complete_upload(key, upload, [tag], 4)
    return "1 part"


def _throughput(client: ObjectClient, key: str) -> str:
    data = secrets.token_bytes(_LARGE)
    began = time.monotonic()
    client.put(key, data)
    up = time.monotonic() - began
    client.get(key, 0, _LARGE)
    down = time.monotonic() - began - up
    return f"{_LARGE / 1e6 / up:.0f} MB/s up, {_LARGE / 1e6 / down:.0f} MB/s down, one request at a time"


def _delete(client: ObjectClient, key: str) -> str:
    client.delete([key, f"{key}-parts", f"{key}-large", *(f"{key}-{number}" for number in range(1, _TIMES))])
    try:
        client.head(key)
    except FileNotFoundError:
        return "gone"
    return "late: a reader may still find it"


def _equal(found: int, wanted: int, what: str) -> int:
    if found != wanted:
        raise DrengineError(OBJECT_DAMAGED, f"{what}: {found} in place of {wanted}")
    return found
