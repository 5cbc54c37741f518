"""Frames that are nearly right: fields changed, with checks that fit again, and numbered as a session numbers them."""

from __future__ import annotations

import struct
from random import Random

from drengine.wire.frames import HEADER, check_of


def mutated(rng: Random, data: bytes) -> bytes:
    """A frame whose fields were changed and whose check was made to fit; sometimes its header as well."""
    magic, version, kind, flags, body_length, meta_length, sequence, _ = HEADER.unpack_from(data)
    meta, payload = (
        bytearray(data[HEADER.size : HEADER.size + meta_length]),
        bytearray(data[HEADER.size + meta_length :]),
    )
    for _ in range(rng.randrange(1, 4)):
        part = payload if payload and rng.random() < 0.2 else meta
        if not part:
            break
        at = rng.randrange(len(part))
        match rng.randrange(4):
            case 0:
                part[at] ^= 1 << rng.randrange(8)
            case 1:
                part[at : at + 8] = rng.choice((b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 7, rng.randbytes(8)))
            case 2:
                del part[at : at + rng.randrange(1, 9)]
            case _:
                part[at:at] = rng.randbytes(rng.randrange(1, 9))
    if rng.random() < 0.1:
        kind = rng.randrange(256)
    body_length, meta_length = len(meta) + len(payload), len(meta)
    if rng.random() < 0.05:
        body_length = rng.choice((0, 1, 1 << 31, (1 << 32) - 1, body_length + 1))
    return _sealed(magic, version, kind, flags, body_length, meta_length, sequence, bytes(meta) + bytes(payload))


def _sealed(
    magic: int, version: int, kind: int, flags: int, body_length: int, meta_length: int, sequence: int, body: bytes
) -> bytes:
    head = struct.pack("<IBBHIIQ", magic, version, kind, flags, body_length, meta_length, sequence)
    return head + struct.pack("<Q", check_of(head, body[:meta_length])) + body


def numbered(frames: list[bytes], first: int = 1) -> bytes:
    """One after another, as a session numbers them."""
    numbered = []
    for sequence, data in enumerate(frames, first):
        magic, version, kind, flags, body_length, meta_length, *_ = HEADER.unpack_from(data)
        numbered.append(_sealed(magic, version, kind, flags, body_length, meta_length, sequence, data[HEADER.size :]))
    return b"".join(numbered)
