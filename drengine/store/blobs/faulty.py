"""A storage that fails as told: errors, torn writes, failed syncs, and calls that happened although they failed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from mmap import mmap
from typing import NamedTuple

from drengine.store.blobs.index import Changes
from drengine.store.blobs.storage import Abilities, Appender, Buffer, Reader, Storage


class Call(NamedTuple):
    """One call into the storage.

    Attributes:
        number: counted from 1 over all operations.
        operation: ``create``, ``resume``, ``append``, ``sync``, ``open``, ``read_at``, ``put``, ``list``, ``delete``,
            ``sync_dir``.
        name: of the file (or prefix).
        size: bytes to be written; 0 for other calls.
    """

    number: int
    operation: str
    name: str
    size: int = 0


@dataclass(frozen=True, slots=True)
class Fault:
    """What befalls a call.

    Attributes:
        errno: the error that the caller sees.
        applied: bytes of an `append` that reach the file before it fails; for any other call, more than 0 means
            that it was done before it fails (the reply was lost).
    """

    errno: int
    applied: int = 0


Plan = Callable[[Call], Fault | None]


def fail_from(number: int, fault: Fault, *, count: int = 1) -> Plan:
    """Fail call `number` and, in all, `count` calls in a row."""
    return lambda call: fault if number <= call.number < number + count else None


class FaultyStorage:
    """Wraps another storage; `plan` says which calls fail and may be replaced at any time. See Storage."""

    def __init__(self, inner: Storage, plan: Plan | None = None) -> None:
        self.inner = inner
        self.plan = plan
        self.calls: list[Call] = []

    @property
    def abilities(self) -> Abilities:
        """See Storage."""
        return self.inner.abilities

    def check(self, operation: str, name: str, size: int = 0) -> Fault | None:
        """Count a call; raise its fault, or return it when part of it is to be done first."""
        call = Call(len(self.calls) + 1, operation, name, size)
        self.calls.append(call)
        fault = self.plan(call) if self.plan else None
        if fault and not fault.applied:
            fail(fault, name)
        return fault

    def create(self, name: str) -> FaultyAppender:
        """See Storage."""
        fault = self.check("create", name)
        appender = self.inner.create(name)
        if fault:
            appender.close()
            fail(fault, name)
        return FaultyAppender(self, name, appender)

    def resume(self, name: str, length: int) -> FaultyAppender:
        """See Storage."""
        fail(self.check("resume", name), name)
        return FaultyAppender(self, name, self.inner.resume(name, length))

    def open(self, name: str) -> FaultyReader:
        """See Storage."""
        fail(self.check("open", name), name)
        return FaultyReader(self, name, self.inner.open(name))

    def put(self, name: str, data: Buffer) -> None:
        """See Storage."""
        fault = self.check("put", name, len(data))
        self.inner.put(name, data)
        fail(fault, name)

    def list(self, prefix: str) -> list[str]:
        """See Storage."""
        fail(self.check("list", prefix), prefix)
        return self.inner.list(prefix)

    def delete(self, name: str) -> None:
        """See Storage."""
        fault = self.check("delete", name)
        self.inner.delete(name)
        fail(fault, name)

    def sync_dir(self, prefix: str) -> None:
        """See Storage."""
        fault = self.check("sync_dir", prefix)
        self.inner.sync_dir(prefix)
        fail(fault, prefix)

    def sweep(self) -> int:
        """See Storage."""
        return self.inner.sweep()

    def free_bytes(self) -> int | None:
        """See Storage."""
        return self.inner.free_bytes()

    def available_length(self, name: str) -> int:
        """See Storage."""
        return self.inner.available_length(name)

    def close(self) -> None:
        """See Storage."""
        self.inner.close()


class FaultyAppender:
    """See Appender."""

    def __init__(self, storage: FaultyStorage, name: str, inner: Appender) -> None:
        self._storage = storage
        self._name = name
        self._inner = inner

    def append(self, *parts: Buffer) -> None:
        """See Appender."""
        fault = self._storage.check("append", self._name, sum(map(len, parts)))
        if fault:
            self._inner.append(b"".join(parts)[: fault.applied])
            fail(fault, self._name)
        self._inner.append(*parts)

    def sync(self) -> Changes:
        """See Appender."""
        fault = self._storage.check("sync", self._name)
        changes = self._inner.sync()
        fail(fault, self._name)
        return changes

    def close(self) -> None:
        """See Appender."""
        self._inner.close()


class FaultyReader:
    """See Reader."""

    def __init__(self, storage: FaultyStorage, name: str, inner: Reader) -> None:
        self._storage = storage
        self._name = name
        self._inner = inner

    def read_at(self, offset: int, length: int) -> bytes:
        """See Reader."""
        fail(self._storage.check("read_at", self._name), self._name)
        return self._inner.read_at(offset, length)

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """See Reader."""
        return self.read_at(offset, length)

    def size(self) -> int:
        """See Reader."""
        return self._inner.size()

    def map(self) -> mmap | bytes:
        """See Reader."""
        return self._inner.map()

    def close(self) -> None:
        """See Reader."""
        self._inner.close()


def fail(fault: Fault | None, name: str) -> None:
    """Raise the fault's error, if there is a fault."""
    if fault:
        raise OSError(fault.errno, os.strerror(fault.errno), name)
