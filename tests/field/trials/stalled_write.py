"""Clients that stop in the middle of a write."""

from __future__ import annotations

import contextlib
import struct

from drengine.nbd.client import NbdAddress, NbdClient
from tests.field.ground import Ground, Pair
from tests.field.trial import trial
from tests.nbd import wire as nbd

SIZE = 8 << 20
WRITE_BYTES = 256 << 10
CUTS = 300


@trial(seconds_max=180)
def a_stalled_write_never_overwrites_a_newer_one(ground: Ground) -> None:
    """A client stalls in mid-write, another one writes the same place, the first is cut: the newer data stays."""
    pair = Pair(ground, {"data": ground.image("data", SIZE)})
    pair.start()
    for _ in range(ground.times(CUTS // 2)):
        _cut(ground, str(pair.tap), "data")
    pair.until_equal()
    _, told = pair.export("latest", "--writable")
    address = NbdAddress.parse(told["uris"][0])
    for _ in range(ground.times(CUTS // 2)):
        _cut(ground, str(address.place), address.export)
    ground.measured["cuts in mid-write"] = 2 * ground.times(CUTS // 2)


def _cut(ground: Ground, socket: str, name: str) -> None:
    """One stall, one newer write, one cut; what is there afterwards is the newer data."""
    rng = ground.rng
    offset = rng.randrange((SIZE - WRITE_BYTES) // 512) * 512
    old, new = rng.randbytes(WRITE_BYTES), rng.randbytes(WRITE_BYTES)
    stalled, other = NbdClient(socket, name), NbdClient(socket, name)
    with contextlib.closing(other):
        request = nbd.request(nbd.WRITE, 77, offset, len(old), old)
        stalled._socket.sendall(request[: 28 + rng.randrange(1, WRITE_BYTES)])
        other.write(offset, new, fua=True)
        if rng.random() < 0.5:
            stalled._socket.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER: ends by a reset
        stalled._socket.close()
        other.flush()
        found = bytes(other.read(offset, WRITE_BYTES))
    assert found == new, f"a stalled write shows at {offset} (seed {ground.seed})"
