"""What every kind of lock keeps to: files of one host, and rows of a database; and what is of the rows alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from benchmarks.devices import until
from drengine.model.errors import DrengineError, ErrorKind
from drengine.store.catalogue.opening import create_catalogue, finish_catalogue
from drengine.store.catalogue.postgres.database import Database
from drengine.store.catalogue.postgres.statements import source_lock
from drengine.store.errors import BRANCH_BUSY, CATALOGUE_UNAVAILABLE, LOCK_LOST, MAINTENANCE_BUSY
from drengine.store.identity import StoreFile
from drengine.store.locks import Holder, Locks, Position
from drengine.store.locks.flock import LOCKS_DIRECTORY, FileLocks
from drengine.store.locks.postgres import LOCK_SECONDS, PostgresLocks
from tests.postgres import Postgres, postgres_server

Opener = Callable[..., Locks]
HERE, THERE = Holder("target-1", ("10.0.0.1:7400", "[::1]:7400")), Holder("target-2")
POSITION = Position("a-b", 2, 77)


def raises(kind: ErrorKind) -> pytest.RaisesExc[DrengineError]:
    return pytest.RaisesExc(DrengineError, check=lambda error: error.kind is kind)


@pytest.fixture
def database(postgres: Postgres, tmp_path: Path) -> Database:
    return made(postgres.fresh_database(), tmp_path)


def made(url: str, place: Path) -> Database:
    file = StoreFile(bytes(16), catalogue=url)
    create_catalogue(place, file)
    finish_catalogue(file)
    return Database(url, file.identity)


@pytest.fixture(params=["files", "rows"])
def process(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Makes the locks of one more process."""
    with ExitStack() as stack:
        if request.param == "rows":
            database = request.getfixturevalue("database")

        def begin(holder: Holder = HERE) -> Locks:
            if request.param == "rows":
                locks: Locks = PostgresLocks(database, holder)
            else:
                (tmp_path / LOCKS_DIRECTORY).mkdir(exist_ok=True)
                locks = FileLocks(tmp_path)
            stack.callback(locks.close)
            return locks

        yield begin


def test_a_branch_has_one_writer_whom_anybody_may_ask_for(process: Opener) -> None:
    one, two = process(HERE), process(THERE)
    assert two.branch_holder("web1", 1) is None
    with one.branch("web1", 1) as lock:
        lock.require()
        with raises(BRANCH_BUSY):
            two.branch("web1", 1)
        with raises(BRANCH_BUSY):
            one.branch("web1", 1)
        assert two.branch_holder("web1", 1) in (HERE, Holder())
        with two.branch("web1", 2), two.branch("web2", 1):
            assert one.branch_holder("web2", 1) in (THERE, Holder())
    assert two.branch_holder("web1", 1) is None
    lock.release()
    with two.branch("web1", 1) as again:
        lock.release()
        lock.remove()
        with raises(BRANCH_BUSY):
            one.branch("web1", 1)
        again.require()


def test_a_lock_whose_source_is_forgotten_can_be_taken_again(process: Opener) -> None:
    one, two = process(), process(THERE)
    one.branch("web1", 1).remove()
    with two.branch("web1", 1), raises(BRANCH_BUSY):
        one.branch("web1", 1)


def test_one_process_maintains_the_store(process: Opener) -> None:
    one, two = process(), process(THERE)
    with one.maintenance(), raises(MAINTENANCE_BUSY):
        two.maintenance()
    two.maintenance().release()


@pytest.mark.parametrize("name", ["manifests", "keys"])
def test_who_writes_manifests_or_keys_waits_for_the_one_before(process: Opener, name: str) -> None:
    one, two = process(), process(THERE)
    first = getattr(one, name)()
    got = threading.Event()

    def wait() -> None:
        with getattr(two, name)():
            got.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not got.wait(0.1)
    first.release()
    assert got.wait(30)
    waiting.join()


def test_a_leased_position_is_seen_by_all_until_its_reader_has_ended(process: Opener) -> None:
    one, two = process(), process(THERE)
    lease = one.lease(POSITION)
    other = two.lease(POSITION)
    assert one.leased_positions() == two.leased_positions() == {POSITION}
    lease.release()
    lease.release()
    assert one.leased_positions() == {POSITION}
    other.release()
    assert one.leased_positions() == set()


def test_tokens_grow_and_never_come_again(database: Database) -> None:
    locks = PostgresLocks(database, HERE)
    tokens = []
    for number in range(6):
        lock = locks.branch("web1", 1)
        assert lock.fence
        tokens.append(lock.fence.token)
        lock.remove() if number % 2 else lock.release()
    assert tokens == sorted(set(tokens))
    locks.close()


def expire(postgres: Postgres, database: Database, what: str = "lock") -> None:
    """As if the server's clock had gone on."""
    with psycopg.connect(database.url) as connection:
        connection.execute(f"UPDATE drengine_catalogue.{what} SET expires = now() - interval '1 second'")


@pytest.mark.fault(80)
def test_a_holder_that_cannot_renew_gives_up_before_anybody_else_may_have_the_lock(tmp_path: Path) -> None:
    now = [1000.0]
    with postgres_server() as server:
        database = made(server.fresh_database(), tmp_path)
        locks = PostgresLocks(database, HERE, seconds=3600, monotonic=lambda: now[0])
        lock = locks.branch("web1", 1)
        now[0] += 3000
        locks.renew()
        now[0] += 3200
        lock.require()
        server.kill()
        with raises(CATALOGUE_UNAVAILABLE):
            locks.renew()
        lock.require()
        now[0] += 100
        with raises(LOCK_LOST):
            lock.require()
        locks.close()


def test_a_lock_that_was_not_renewed_in_time_goes_to_the_next_one_for_good(
    postgres: Postgres, database: Database
) -> None:
    one, two = PostgresLocks(database, HERE), PostgresLocks(database, THERE)
    lock = one.branch("web1", 1)
    expire(postgres, database)
    one.renew()
    lock.require()
    with raises(BRANCH_BUSY):
        two.branch("web1", 1)
    expire(postgres, database)
    taken = two.branch("web1", 1)
    assert lock.fence and taken.fence
    assert taken.fence.token > lock.fence.token
    one.renew()
    with raises(LOCK_LOST):
        lock.require()
    lock.release()
    assert one.branch_holder("web1", 1) == THERE
    taken.require()
    one.close()
    two.close()


def test_a_lock_that_is_let_go_while_it_is_renewed_stays_free(postgres: Postgres, database: Database) -> None:
    one, two = PostgresLocks(database, HERE), PostgresLocks(database, THERE)
    lock = one.branch("web1", 1)
    assert lock.fence
    held = dict(one._held)
    lock.release()
    one._held.update(held)
    one.renew()
    two.branch("web1", 1).release()
    one.close()
    two.close()


def test_leases_are_renewed_and_those_of_the_dead_end(postgres: Postgres, database: Database) -> None:
    one, two = PostgresLocks(database, HERE), PostgresLocks(database, THERE)
    one.lease(POSITION)
    expire(postgres, database, "lease")
    assert two.leased_positions() == set()
    one.renew()
    assert two.leased_positions() == {POSITION}
    expire(postgres, database, "lease")
    two.renew()
    one.renew()
    assert two.leased_positions() == set()
    one.close()
    two.close()


def test_a_thread_renews_what_is_held(database: Database) -> None:
    renewed = threading.Event()

    class Counted(PostgresLocks):
        def renew(self) -> None:
            super().renew()
            renewed.set()

    locks = Counted(database, HERE, seconds=0.4)
    with locks.branch("web1", 1) as lock:
        assert renewed.wait(30)
        lock.require()
    locks.close()
    assert LOCK_SECONDS == 10


def test_a_session_that_hangs_in_a_transaction_of_the_source_is_ended_by_who_takes_over(
    postgres: Postgres, database: Database
) -> None:
    locks = PostgresLocks(database, HERE)
    hanging = psycopg.connect(database.url, autocommit=True)
    hanging.pgconn.enter_pipeline_mode()
    for statement in ("BEGIN", f"SELECT pg_advisory_xact_lock({source_lock('web1')})"):
        hanging.pgconn.send_query_params(statement.encode(), None)
    hanging.pgconn.send_flush_request()  # and no end of the pipeline: for the server it goes on
    hanging.pgconn.flush()
    with psycopg.connect(database.url) as other:
        until(lambda: other.execute("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'").fetchone(), "it has the lock")
    locks.branch("web1", 1).require()
    locks.close()
    hanging.pgconn.finish()
