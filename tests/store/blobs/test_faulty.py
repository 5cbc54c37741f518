"""The wrapper that fails as told."""

from __future__ import annotations

import errno

import pytest

from drengine.store.blobs import Fault, FaultyStorage, MemoryStorage, fail_from


def test_calls_are_counted_in_order() -> None:
    storage = FaultyStorage(MemoryStorage())
    appender = storage.create("f")
    appender.append(b"ab", b"c")
    appender.sync()
    storage.sync_dir("f")
    storage.put("g", b"xy")
    storage.open("g").read_at(0, 1)
    storage.list("")
    storage.delete("g")
    assert [(call.number, call.operation, call.size) for call in storage.calls] == [
        (1, "create", 0),
        (2, "append", 3),
        (3, "sync", 0),
        (4, "sync_dir", 0),
        (5, "put", 2),
        (6, "open", 0),
        (7, "read_at", 0),
        (8, "list", 0),
        (9, "delete", 0),
    ]


def test_a_torn_append_leaves_its_beginning() -> None:
    inner = MemoryStorage()
    storage = FaultyStorage(inner, fail_from(2, Fault(errno.ENOSPC, applied=4)))
    appender = storage.create("f")
    with pytest.raises(OSError, match="space") as caught:
        appender.append(b"abc", b"def")
    assert caught.value.errno == errno.ENOSPC
    assert bytes(inner.files["f"]) == b"abcd"
    appender.append(b"!")
    assert bytes(inner.files["f"]) == b"abcd!"


@pytest.mark.fault(15)
def test_a_lost_reply_means_done_and_failed() -> None:
    inner = MemoryStorage()
    storage = FaultyStorage(inner, fail_from(1, Fault(errno.EIO, applied=1)))
    with pytest.raises(OSError, match="error"):
        storage.put("f", b"x")
    assert "f" in inner.files


def test_an_outright_failure_does_nothing() -> None:
    inner = MemoryStorage()
    storage = FaultyStorage(inner, fail_from(1, Fault(errno.EIO), count=2))
    for _ in range(2):
        with pytest.raises(OSError, match="error"):
            storage.put("f", b"x")
    assert not inner.files
    storage.put("f", b"x")
    assert "f" in inner.files
