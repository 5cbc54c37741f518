"""The file in the store's directory that holds what the site decided: `policy.json`, replaced whole, numbered.

| who | reads | writes |
|---|---|---|
| target | whom it turns away, how long points stay | that a source joined again, how old retired ones are |
| orchestrator | what agents are told | |
| `drengine fleet`, `drengine source add` | all of it | all of it |

A lock lets one process change it at a time; readers need none. Settings that an older version does not know stay.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from drengine.durable import replace_durably
from drengine.model.errors import DrengineError
from drengine.ownership import open_owned
from drengine.policy.errors import POLICY_UNUSABLE

FILE, LOCK = "policy.json", "locks/policy.lock"


class Retired(msgspec.Struct, frozen=True):
    """A source that is no more.

    Attributes:
        at_ns: since when.
        by: who decided it.
        serials: of its certificates that were revoked with it, in hexadecimal; another one is a source that joined
            again. Empty: only `drengine source add` lets it come back.
        aged_seconds: for how long the target has seen it retired: the age that retention goes by. A clock that leaps
            does not make it older.
    """

    at_ns: int
    by: str
    serials: tuple[str, ...] = ()
    aged_seconds: float = 0.0


class Policy(msgspec.Struct, frozen=True):
    """What was decided.

    Attributes:
        version: one more with each change of `rules`.
        rules: values by setting, by pattern of sources' names.
        retired: sources by name.
    """

    version: int = 0
    rules: dict[str, dict[str, str]] = {}
    retired: dict[str, Retired] = {}


class _Seen(NamedTuple):
    stamp: tuple[int, ...] | None
    policy: Policy


def retired_sources(store: Path) -> frozenset[str]:
    """Sources of which nothing is shown any more. None where that can't be told: the target's log says so."""
    try:
        return frozenset(PolicyFile(store).read().retired)
    except DrengineError:
        return frozenset()


class PolicyFile:
    """Of one store. Threads may share it."""

    def __init__(self, store: Path) -> None:
        self._path = store / FILE
        self._lock = store / LOCK
        self._seen = _Seen((), Policy())

    def read(self) -> Policy:
        """What holds now; read again only when the file is another one.

        Raises:
            DrengineError: POLICY_UNUSABLE.
        """
        stamp = _stamp(self._path)
        seen = self._seen
        if stamp != seen.stamp:
            seen = self._seen = _Seen(stamp, self._load() if stamp else Policy())
        return seen.policy

    @contextlib.contextmanager
    def changing(self) -> Iterator[Policy]:
        """What holds, while nobody else changes it; `keep` a new one before leaving.

        Raises:
            DrengineError: POLICY_UNUSABLE.
        """
        try:
            self._lock.parent.mkdir(exist_ok=True)
            descriptor = open_owned(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DrengineError(POLICY_UNUSABLE, f"{self._lock}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield self._load() if self._path.exists() else Policy()
        finally:
            os.close(descriptor)

    def keep(self, policy: Policy) -> None:
        """Make it the one that holds: old or new after any crash. Only within `changing`.

        Raises:
            DrengineError: POLICY_UNUSABLE.
        """
        content = msgspec.json.format(msgspec.json.encode(policy, order="deterministic"), indent=1)
        try:
            replace_durably(self._path, content + b"\n")
        except OSError as error:
            raise DrengineError(POLICY_UNUSABLE, f"{self._path}: {error.strerror}") from error

    def _load(self) -> Policy:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Policy)
        except FileNotFoundError:
            return Policy()
        except OSError as error:
            raise DrengineError(POLICY_UNUSABLE, f"{self._path}: {error.strerror}") from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DrengineError(POLICY_UNUSABLE, f"{self._path} is damaged: {error}") from error


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DrengineError(POLICY_UNUSABLE, f"{path}: {error.strerror}") from error
    return found.st_ino, found.st_size, found.st_mtime_ns
