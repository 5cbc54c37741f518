"""Replies as bytes. Successes without data are simple replies (legal beside structured ones, and the shortest)."""

from __future__ import annotations

from collections.abc import Sequence

from drengine.nbd.export import FLAG_DF, FLAG_REQ_ONE, Buffer, Command, Piece, Reply, Request
from drengine.nbd.numbers import (
    CHUNK,
    CHUNK_DATA,
    CHUNK_DONE,
    CHUNK_ERROR,
    CHUNK_ERROR_BODY,
    CHUNK_HOLE,
    CHUNK_HOLE_BODY,
    CHUNK_MAGIC,
    CHUNK_OFFSET,
    CHUNK_STATUS,
    CONTEXT_ID,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    STATUS_EXTENT,
    U32,
)

JOIN_BYTES = 32 << 10
"""Data up to this long is copied to stand beside its header in one send; longer data is sent as it is."""
_MESSAGE_BYTES_MAX = 1024
_READ = int(Command.READ)


def encode_replies(replies: Sequence[Reply], *, structured: bool) -> list[Buffer]:
    """Bytes of replies in order; small ones are joined.

    Raises:
        ValueError: a READ's data has another length than was asked for (an export's defect).
    """
    parts: list[Buffer] = []
    pack = SIMPLE_REPLY.pack
    long = False
    for reply in replies:
        request = reply.request
        if reply.error:
            parts.append(_error(reply, structured=structured))
        elif request.command != _READ:
            parts.append(pack(SIMPLE_REPLY_MAGIC, 0, request.cookie))
        else:
            _read(parts, request, reply, structured=structured)
            long = long or request.length > JOIN_BYTES
    return _joined(parts) if long else [b"".join(parts)]


def encode_status(request: Request, extents: Sequence[tuple[int, int]], extents_max: int) -> Buffer:
    """A BLOCK_STATUS answer: neighbours of one kind merged, clipped to the request, one only where one was asked.

    Raises:
        ValueError: no extents (an export's defect).
    """
    merged: list[tuple[int, int]] = []
    left = request.length
    for length, flags in extents:
        if length <= 0:
            raise ValueError("an extent of no length")
        taken = min(length, left)
        if merged and merged[-1][1] == flags:
            merged[-1] = (merged[-1][0] + taken, flags)
        elif len(merged) == extents_max or (merged and request.flags & FLAG_REQ_ONE):
            break
        else:
            merged.append((taken, flags))
        left -= taken
        if not left:
            break
    if not merged:
        raise ValueError("no extents for a range")
    body = U32.pack(CONTEXT_ID) + b"".join(STATUS_EXTENT.pack(*extent) for extent in merged)
    return CHUNK.pack(CHUNK_MAGIC, CHUNK_DONE, CHUNK_STATUS, request.cookie, len(body)) + body


def _error(reply: Reply, *, structured: bool) -> bytes:
    cookie = reply.request.cookie
    if not structured:
        return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, reply.error, cookie)
    message = reply.message.encode("utf-8", "replace")[:_MESSAGE_BYTES_MAX]
    body = CHUNK_ERROR_BODY.pack(reply.error, len(message)) + message
    return CHUNK.pack(CHUNK_MAGIC, CHUNK_DONE, CHUNK_ERROR, cookie, len(body)) + body


def _read(parts: list[Buffer], request: Request, reply: Reply, *, structured: bool) -> None:
    pieces: Sequence[Piece] = ((len(reply.data), reply.data),) if reply.pieces is None else reply.pieces
    if sum(length for length, _ in pieces) != request.length:
        raise ValueError(f"a READ of {request.length} bytes is answered with another length")
    if any(data is not None and len(data) != length for length, data in pieces):
        raise ValueError("a READ's piece has another length than its data")
    if not structured:
        parts.append(SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, request.cookie))
        parts += [bytes(length) if data is None else data for length, data in pieces]
        return
    if request.flags & FLAG_DF and len(pieces) > 1:
        whole = b"".join(bytes(length) if data is None else data for length, data in pieces)
        pieces = ((len(whole), whole),)
    offset = request.offset
    for index, (length, data) in enumerate(pieces):
        done = CHUNK_DONE if index == len(pieces) - 1 else 0
        if data is None:
            body = CHUNK_HOLE_BODY.pack(offset, length)
            parts.append(CHUNK.pack(CHUNK_MAGIC, done, CHUNK_HOLE, request.cookie, len(body)) + body)
        else:
            header = CHUNK.pack(CHUNK_MAGIC, done, CHUNK_DATA, request.cookie, CHUNK_OFFSET.size + length)
            parts.append(header + CHUNK_OFFSET.pack(offset))
            parts.append(data)
        offset += length


def _joined(parts: list[Buffer]) -> list[Buffer]:
    joined: list[Buffer] = []
    small: list[Buffer] = []
    for part in parts:
        if len(part) <= JOIN_BYTES:
            small.append(part)
        else:
            joined += (b"".join(small), part) if small else (part,)
            small = []
    return [*joined, b"".join(small)] if small else joined
