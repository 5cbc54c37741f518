"""Crashes and failures over an object store: nothing acknowledged is lost, a prefix is shown, keys are written once."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from drengine.store.blobs.s3.errors import OBJECT_STORE_AWAY, OBJECT_STORE_BUSY
from drengine.store.blobs.s3.options import ACK_LOCAL, ACK_OBJECT, S3Options
from drengine.store.store import Store
from tests.crash.stamps import OPTIONS, check
from tests.s3.proxy import (
    APPLIED_AND_FAILED,
    BROKEN,
    INTERNAL,
    LOST_REPLY,
    SHORT,
    SLOW_DOWN,
    TRUNCATED,
    Fault,
    Plan,
    Proxy,
    Request,
    fault_proxy,
)
from tests.s3.server import S3Server
from tests.s3.stamping import options
from tests.s3.stores import stored_in
from tests.store import test_faults
from tests.store.test_faults import SMALL, STREAM

SEED = 20261130


def short_or_whole(short: int, whole: int) -> list[Any]:
    """`make test` takes a sample; `make campaigns` all of it."""
    return [pytest.param(short, id="short"), pytest.param(whole, id="whole", marks=pytest.mark.campaign)]


ANY = (BROKEN, LOST_REPLY, INTERNAL, APPLIED_AND_FAILED, SLOW_DOWN, Fault(delay_seconds=0.03))
ONLY_FOR = {"GetObject": TRUNCATED, "PutObject": SHORT, "UploadPart": SHORT}


def random_faults(seed: int, share: float = 0.15) -> Plan:
    """Some requests fail, each in some way."""
    chosen, lock = random.Random(seed), threading.Lock()

    def plan(request: Request) -> Fault | None:
        ways = [*ANY, *([ONLY_FOR[request.operation]] if request.operation in ONLY_FOR else [])]
        with lock:
            return chosen.choice(ways) if chosen.random() < share else None

    return plan


def assert_written_once(proxy: Proxy) -> None:
    twice = {key: count for key, count in proxy.keys_written().items() if count > 1}
    assert not twice, f"of {len(proxy.keys_written())} keys these were written more than once: {twice}"


@contextmanager
def writing(path: Path, ack: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.s3.stamping", str(path), str(SEED), ack]
    errors = (path.parent / "errors").open("ab")
    with errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def acknowledged(child: subprocess.Popen[str], count: int) -> int:
    """The newest position of `count` acknowledgements, and of what came before the child was killed."""
    assert child.stdout
    newest = 0
    for _ in range(count):
        line = child.stdout.readline()
        assert line, "the child ended by itself"
        newest = int(line)
    child.kill()
    return max([newest, *map(int, child.stdout.read().split())])


@pytest.mark.timeout(600)
@pytest.mark.fault(1)
@pytest.mark.fault(4)
@pytest.mark.fault(14)
@pytest.mark.fault(15)
@pytest.mark.fault(16)
@pytest.mark.fault(81)
@pytest.mark.parametrize("ack", [ACK_OBJECT, ACK_LOCAL])
@pytest.mark.parametrize("kills", short_or_whole(3, 8))
def test_a_writer_that_is_killed_while_the_object_store_fails_loses_nothing(
    tmp_path: Path, s3: S3Server, bucket: str, ack: str, kills: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """After each kill the store is opened where it was; under `object` it is also rebuilt as if the host were lost."""
    chosen, newest = random.Random(SEED), 0
    with fault_proxy(s3) as proxy:
        Store.create(tmp_path / "store", stored_in=stored_in(proxy.endpoint, bucket), options=OPTIONS).close()
        for kill in range(kills):
            proxy.plan = random_faults(SEED + kill)
            with writing(tmp_path / "store", ack) as child:
                newest = max(newest, acknowledged(child, chosen.choice((1, 2, 5, 20))))
            proxy.plan = None
            if ack == ACK_OBJECT:
                where = stored_in(s3.endpoint, bucket)
                Store.rebuild(tmp_path / f"seat-{kill}", stored_in=where, options=OPTIONS)
                with Store.open(tmp_path / f"seat-{kill}", options=OPTIONS, read_only=True) as rebuilt:
                    check(rebuilt, SEED, newest)
            with Store.open(tmp_path / "store", options=OPTIONS, storage_options=options(ack)) as store:
                newest = max(newest, check(store, SEED, newest))
                assert not store.compare_objects().missing
                store.compact()
        assert_written_once(proxy)
        requests = len(proxy.log)
    with capsys.disabled():
        print(f" [seed {SEED}: {kills} kills, {newest} positions, {requests} requests]", end="")
    assert newest > kills


@pytest.mark.timeout(240)
@pytest.mark.fault(81)
@pytest.mark.parametrize("kills", short_or_whole(2, 5))
def test_an_object_store_that_is_killed_again_and_again_only_delays(
    tmp_path: Path, s3_of_its_own: S3Server, kills: int, capsys: pytest.CaptureFixture[str]
) -> None:
    server, chosen, newest = s3_of_its_own, random.Random(SEED), 0
    with fault_proxy(server) as proxy:
        where = stored_in(proxy.endpoint, server.bucket())
        Store.create(tmp_path / "store", stored_in=where, options=OPTIONS).close()
        with writing(tmp_path / "store", ACK_OBJECT) as child:
            assert child.stdout
            for _ in range(kills):
                killing = threading.Timer(chosen.uniform(0.05, 0.4), server.kill)
                killing.start()
                killing.join()
                server.start()
                newest = int(child.stdout.readline())
            newest = max(newest, acknowledged(child, 3))
        assert_written_once(proxy)
        with Store.open(tmp_path / "store", options=OPTIONS, storage_options=options(ACK_OBJECT)) as store:
            check(store, SEED, newest)
            assert not store.compare_objects().missing
    with capsys.disabled():
        print(f" [seed {SEED}: {kills} kills of the server, {newest} positions]", end="")


def fail_nth(number: int, fault: Fault, *, count: int = 1) -> Plan:
    """Fail `count` requests from this one on."""
    seen, lock = 0, threading.Lock()

    def plan(request: Request) -> Fault | None:
        nonlocal seen
        with lock:
            seen += 1
            hit = number <= seen < number + count
        return fault if hit and (fault is not SHORT or request.operation in ("PutObject", "UploadPart")) else None

    return plan


EVERY = (BROKEN, LOST_REPLY, INTERNAL, APPLIED_AND_FAILED, SLOW_DOWN, TRUNCATED, SHORT)


@pytest.mark.timeout(900)
@pytest.mark.fault(14)
@pytest.mark.fault(15)
@pytest.mark.fault(81)
@pytest.mark.parametrize("stride", short_or_whole(5, 1))
def test_each_request_of_a_life_fails_once_and_the_life_is_the_same(
    tmp_path: Path, s3: S3Server, stride: int, capsys: pytest.CaptureFixture[str]
) -> None:
    patient = S3Options(patience=5.0, delete_delay=0.0)
    lives, number = 0, 1 - stride
    while True:
        number += stride
        with fault_proxy(s3) as proxy:
            path, where = tmp_path / str(number), stored_in(proxy.endpoint, s3.bucket())
            with Store.create(path, options=SMALL, stored_in=where, storage_options=patient) as store:
                store.ensure_source("web1")
                proxy.log.clear()
                proxy.plan = fail_nth(number, EVERY[number % len(EVERY)])
                errors: list[Exception] = []
                assert test_faults.replicate(store, errors) == len(STREAM)  # type: ignore[arg-type, no-untyped-call]
                assert not errors
                test_faults.check(store, len(STREAM))
            assert_written_once(proxy)
            lives += 1
            if len(proxy.log) < number:
                break
    with capsys.disabled():
        print(f" [{lives} lives, each with another request failing]", end="")
    assert lives > 20 // stride


@pytest.mark.timeout(300)
@pytest.mark.fault(81)
@pytest.mark.parametrize("fault", [BROKEN, SLOW_DOWN, APPLIED_AND_FAILED])
@pytest.mark.parametrize("number", [1, 6, 11])
def test_an_outage_beyond_all_patience_ends_the_writer_and_loses_nothing(
    tmp_path: Path, s3: S3Server, bucket: str, number: int, fault: Fault
) -> None:
    hasty = S3Options(patience=0.05, delete_delay=0.0)
    kinds = (*test_faults.EXPECTED_KINDS, OBJECT_STORE_AWAY, OBJECT_STORE_BUSY)
    with fault_proxy(s3) as proxy, mock.patch.object(test_faults, "EXPECTED_KINDS", kinds):
        where = stored_in(proxy.endpoint, bucket)
        with Store.create(tmp_path / "store", options=SMALL, stored_in=where, storage_options=hasty) as store:
            store.ensure_source("web1")
            proxy.plan = fail_nth(number, fault, count=6)
            errors: list[Exception] = []
            assert test_faults.replicate(store, errors) == len(STREAM)  # type: ignore[arg-type, no-untyped-call]
            assert errors
            test_faults.check(store, len(STREAM))
            store.compact()
            assert not store.compare_objects().missing
        assert_written_once(proxy)
