"""The S3 server is killed at each request of a store's life: nothing is lost, and the store goes on by itself."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import pytest

from benchmarks.devices import until
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.store.blobs.s3.errors import OBJECT_STORE_AWAY, OBJECT_STORE_BUSY
from drengine.store.blobs.s3.options import ACK_OBJECT, S3Options
from drengine.store.care.retention import RetentionPolicy
from drengine.store.store import Store
from tests.crash.stamps import OPTIONS, append_next, check
from tests.crash.workload import SOURCE
from tests.s3.proxy import BROKEN, LOST_REPLY, Fault, Proxy, Request, fault_proxy
from tests.s3.server import S3Server
from tests.s3.stores import stored_in
from tests.s3.test_campaign import assert_written_once
from tests.store.harness import KEKS

SEED = 20261130
COMMITS = 8
RECORDS = 7
TRIES = 6
KEEP_ONE = RetentionPolicy.parse("all for 0s")
SAMPLED = 60
"""A life without kills makes some 64 requests."""
STRIDE = 17
WAITING, IMPATIENT = 20.0, 0.3
"""Patience in seconds: the server comes back within it, or not."""


T = TypeVar("T")


class Killer:
    """Kills the server at requests, told by their numbers from 1: before they are applied, or after it, by turns.

    Either it is started again at once, or its caller has to `revive` it.
    """

    def __init__(self, server: S3Server, numbers: Iterable[int], *, after_first: bool, comes_back: bool) -> None:
        self._server, self._comes_back = server, comes_back
        self._is_after = {number: bool(turn % 2) != after_first for turn, number in enumerate(numbers)}
        self._lock = threading.Lock()
        self._is_down = False
        self.seen = 0
        self.killed: list[str] = []

    def __call__(self, request: Request) -> Fault | None:
        """See Plan."""
        with self._lock:
            self.seen += 1
            is_after = self._is_after.get(self.seen)
        if is_after is None:
            return None
        if is_after:
            return Fault(LOST_REPLY.way, applied=True, then=lambda: self._kill(f"after {request.operation}"))
        self._kill(f"before {request.operation}")
        return BROKEN

    def _kill(self, when: str) -> None:
        with self._lock:
            self.killed.append(when)
            self._server.kill()
            self._is_down = True
        if self._comes_back:
            self.revive()

    def revive(self) -> None:
        """Start the server, if it is down."""
        with self._lock:
            if self._is_down:
                self._server.start()
                self._is_down = False


class Life:
    """What a store goes through. Each step may be done again, as a target's next session or turn of care does."""

    def __init__(self, path: Path, proxy: Proxy, bucket: str, patience: float, revive: Callable[[], None]) -> None:
        self._path, self._place, self._revive = path, stored_in(proxy.endpoint, bucket), revive
        self._options = S3Options(ack=ACK_OBJECT, patience=patience, request_seconds=10.0, delete_delay=0.0)
        Store.create(path, stored_in=self._place, options=OPTIONS, keks=KEKS).close()
        self.acknowledged = 0
        self.failures = 0

    def live(self) -> None:
        """All of it."""
        with self._open() as store:
            self._do(lambda: store.ensure_source(SOURCE))
            self._do(lambda: self._ingest(store, COMMITS // 2))
            self._do(lambda: self._care(store))
            self._do(lambda: check(store, SEED, self.acknowledged))
        shutil.rmtree(self._path / "cache", ignore_errors=True)
        with self._open() as store:
            self._do(lambda: self._ingest(store, COMMITS))
            self._do(lambda: store.pin(store.points(SOURCE)[-1], "keep"))
            self._do(lambda: self._care(store))
            self._do(lambda: check(store, SEED, self.acknowledged))
            self._do(lambda: self._settle(store))
        shutil.rmtree(self._path / "cache", ignore_errors=True)
        with self._open() as store:
            self._do(lambda: check(store, SEED, self.acknowledged))
            self._do(lambda: self._is_whole(store))

    def _open(self) -> Store:
        return self._do(lambda: Store.open(self._path, storage_options=self._options, options=OPTIONS, keks=KEKS))

    def _do(self, step: Callable[[], T]) -> T:
        for _ in range(TRIES):
            try:
                return step()
            except DrengineError as error:
                if error.kind not in (OBJECT_STORE_AWAY, OBJECT_STORE_BUSY):
                    raise
                self.failures += 1
                self._revive()
        raise AssertionError("a step fails although the server is back")

    def _ingest(self, store: Store, commits: int) -> None:
        writer = store.writer(SOURCE, generation=1)
        try:
            self.acknowledged = max(self.acknowledged, writer.durable.sequence)
            while writer.durable.sequence < commits * RECORDS:
                for _ in range(RECORDS):
                    append_next(writer, SEED)
                self.acknowledged = writer.commit(generation=1).sequence
        finally:
            writer.close()

    def _care(self, store: Store) -> None:
        store.retain(KEEP_ONE, SystemClock().now_ns())
        store.compact()

    def _settle(self, store: Store) -> None:
        """All is uploaded, by the store itself."""
        self._revive()
        store.compact()
        until(lambda: not [each for each in (self._path / "spool").rglob("*") if each.is_file()], "the uploads")

    def _is_whole(self, store: Store) -> None:
        found = store.compare_objects()
        assert found.named and not found.missing
        assert not store.scrub().records_damaged
        assert not store.context.catalogue.damage(SOURCE)


def live(path: Path, server: S3Server, numbers: Iterable[int], *, after_first: bool, comes_back: bool) -> Killer:
    """One life with these kills; it ends whole, also for a host that has nothing but the bucket."""
    killer = Killer(server, numbers, after_first=after_first, comes_back=comes_back)
    bucket = server.bucket()
    with fault_proxy(server) as proxy:
        life = Life(path / "store", proxy, bucket, WAITING if comes_back else IMPATIENT, killer.revive)
        proxy.plan = killer
        life.live()
        assert_written_once(proxy)
    Store.rebuild(path / "seat", stored_in=stored_in(server.endpoint, bucket), options=OPTIONS, keks=KEKS)
    with Store.open(path / "seat", options=OPTIONS, keks=KEKS, read_only=True) as rebuilt:
        check(rebuilt, SEED, life.acknowledged)
    assert life.acknowledged == COMMITS * RECORDS
    shutil.rmtree(path)
    return killer


@pytest.fixture(scope="module")
def requests(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many requests a life without kills makes."""
    return live(tmp_path_factory.mktemp("whole") / "life", s3, (), after_first=False, comes_back=True).seen


@pytest.mark.timeout(240)
@pytest.mark.fault(81)
def test_a_server_killed_at_some_requests_of_a_life_loses_nothing(
    tmp_path: Path, s3_of_its_own: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = sorted(random.Random(SEED).sample(range(5, SAMPLED), 2))
    killer = live(tmp_path / "life", s3_of_its_own, numbers, after_first=False, comes_back=False)
    with capsys.disabled():
        print(f" [seed {SEED}: killed {', '.join(killer.killed)}]", end="")
    assert len(killer.killed) == len(numbers)


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@pytest.mark.fault(81)
@pytest.mark.parametrize("comes_back", [True, False], ids=["a moment later", "after the patience"])
@pytest.mark.parametrize("after_first", [False, True])
def test_a_server_killed_at_every_request_of_a_life_loses_nothing(
    tmp_path: Path,
    s3_of_its_own: S3Server,
    requests: int,
    capsys: pytest.CaptureFixture[str],
    *,
    after_first: bool,
    comes_back: bool,
) -> None:
    """Each request is hit in one life or another; every life has several kills."""
    kills = 0
    for first in range(1, STRIDE + 1):
        numbers = range(first, requests + STRIDE, STRIDE)
        killer = live(tmp_path / str(first), s3_of_its_own, numbers, after_first=after_first, comes_back=comes_back)
        kills += len(killer.killed)
    with capsys.disabled():
        print(f" [{STRIDE} lives of some {requests} requests, {kills} kills]", end="")
    assert kills >= requests
