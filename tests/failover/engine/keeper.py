"""A registry in memory that keeps what the executor relies on: leases with tokens, append-only journals, requests."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

from drengine.failover.run import JournalEntry, Lease, Outcome, Request, RequestKind, RunRecord, RunState
from drengine.model.clock import Clock, SystemClock
from drengine.model.errors import DrengineError, ErrorKind

LEASE_HELD = ErrorKind("test-lease-held", 98, "", "")
LEASE_LOST = ErrorKind("test-lease-lost", 99, "", "")


class MemoryKeeper:
    """See the module; methods as the executor and the engine call them."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._runs: dict[str, RunRecord] = {}
        self._journals: dict[str, list[JournalEntry]] = {}
        self._requests: list[Request] = []
        self._leases: dict[str, Lease] = {}
        self.on_append: Any = lambda entry: None
        self.on_leave: Any = lambda: None

    def create_run(self, run: RunRecord) -> None:
        self._runs[run.id] = run
        self._journals[run.id] = []

    def run(self, id: str) -> RunRecord:
        return self._runs[id]

    def update_run(
        self,
        id: str,
        *,
        token: int,
        state: RunState | None = None,
        outcome: Outcome | None = None,
        reason: str | None = None,
        finished_ns: int | None = None,
    ) -> None:
        given = {"state": state, "outcome": outcome, "reason": reason, "finished_ns": finished_ns}
        with self._lock:
            self._check(id, token)
            changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
            self._runs[id] = replace(self._runs[id], **changes)

    def leave_run(self, lease: Lease, id: str, *, seen: int, entry: JournalEntry | None = None, **changes: Any) -> bool:
        self.on_leave()
        with self._lock:
            self._check(id, lease.token)
            if self.requests(id, seen):
                return False
            if entry is not None:
                self._journals[id].append(replace(entry, seq=len(self._journals[id]) + 1))
            self._runs[id] = replace(self._runs[id], **changes)
            self._leases[lease.name] = replace(lease, expires_ns=0)
            return True

    def append(self, run: str, token: int, entry: JournalEntry) -> int:
        with self._lock:
            self._check(run, token)
            self._journals[run].append(replace(entry, seq=len(self._journals[run]) + 1))
            seq = len(self._journals[run])
        self.on_append(entry)
        return seq

    def entries(self, run: str, after: int = 0) -> list[JournalEntry]:
        return [entry for entry in self._journals[run] if entry.seq > after]

    def acquire_lease(self, name: str, owner: str, seconds: float, *, after: int | None = None) -> Lease:
        with self._lock:
            held = self._leases.get(name)
            now = self._clock.now_ns()
            if held is not None and held.owner != owner and held.expires_ns > now:
                raise DrengineError(LEASE_HELD, f"{held.owner} has {name}")
            lease = Lease(name, owner, (held.token if held else 0) + 1, now + int(seconds * 1e9))
            self._leases[name] = lease
            return lease

    def renew_lease(self, lease: Lease, seconds: float) -> Lease:
        with self._lock:
            if self._leases[lease.name].token != lease.token:
                raise DrengineError(LEASE_LOST, lease.name)
            self._leases[lease.name] = replace(lease, expires_ns=self._clock.now_ns() + int(seconds * 1e9))
            return self._leases[lease.name]

    def release_lease(self, lease: Lease) -> None:
        with self._lock:
            if self._leases[lease.name].token == lease.token:
                self._leases[lease.name] = replace(lease, expires_ns=0)

    def request(self, run: str, kind: RequestKind, step: str, by: str, note: str = "", *, digest: str = "") -> Request:
        with self._lock:
            seq = len(self._requests) + 1
            made = Request(run, kind, step, by, note, self._clock.now_ns(), seq, "test", (), digest)
            self._requests.append(made)
            return made

    def requests(self, run: str, after: int = 0) -> list[Request]:
        return [each for each in self._requests if each.run == run and each.seq > after]

    def _check(self, run: str, token: int) -> None:
        held = self._leases.get(f"run:{run}")
        if held is None or held.token != token:
            raise DrengineError(LEASE_LOST, run)
