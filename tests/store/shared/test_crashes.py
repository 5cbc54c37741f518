"""The connection cut, and the server killed, at every message of a commit: what was reported is what is there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.devices import until
from drengine.model.errors import DrengineError
from drengine.store.catalogue.postgres import catalogue as postgres_catalogue
from drengine.store.catalogue.postgres import link, statements
from drengine.store.errors import CATALOGUE_DAMAGED, CATALOGUE_UNAVAILABLE
from drengine.store.identity import StoreFile, read_store_file, write_store_file
from drengine.store.store import Store
from tests.clock import ManualClock
from tests.postgres import Postgres, postgres_server
from tests.store.harness import KEKS, TINY, Source
from tests.store.shared.proxy import SYNC, Moment, Proxy


class Bench:
    """A store behind a proxy, with one committed point and one that is to be committed."""

    def __init__(self, server: Postgres, place: Path, *, is_encrypted: bool = False) -> None:
        self.keks = KEKS if is_encrypted else None
        self._database = server.database()
        self._server = server
        self.path = place / "store"
        url = server.tcp_url(self._database)
        Store.create(self.path, options=TINY, clock=ManualClock(), catalogued_in=url, keks=self.keks).close()
        self.proxy = Proxy(server.port)
        self._through(self.proxy.port)
        self.store = self._open()
        self.source = Source(self.store, data=100_000)
        self.source.write_random(2)
        self.source.cut()
        self.source.commit()
        self.source.write_random(3)
        self.before = len(self.source.points)
        self.source.cut()

    def _through(self, port: int) -> None:
        file = read_store_file(self.path)
        url = self._server.tcp_url(self._database, port)
        write_store_file(self.path, StoreFile(file.identity, file.storage, url))

    def _open(self) -> Store:
        return Store.open(self.path, options=TINY, clock=ManualClock(), keks=self.keks)

    def commit(self) -> bool:
        """Whether the commit was reported."""
        before = self.source.committed
        try:
            self.source.commit()
        except DrengineError as error:
            assert error.kind is CATALOGUE_UNAVAILABLE, error
            assert self.source.writer.failed, "such a writer is of no more use"
            self.source.committed = before
            return False
        return True

    def points(self) -> int:
        """How many there are, after checking all of them by another process's eyes."""
        self._through(0)
        with self._open() as store:
            found = len(store.points("web1"))
            self.source.store = store
            if found > self.before:
                self.source.committed = self.source.disk.copy()
            self.source.check()
        return found

    def close(self) -> None:
        self.proxy.disarm()
        self.source.writer.close()
        self.store.close()
        self.proxy.__exit__(None, None, None)


@pytest.fixture
def bench(postgres: Postgres, tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    with ExitStack() as stack:
        count = 0

        def make(*, server: Postgres = postgres, is_encrypted: bool = False) -> Bench:
            nonlocal count
            count += 1
            made = Bench(server, tmp_path / str(count), is_encrypted=is_encrypted)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits between attempts waits less; that nothing answers is known after a few."""
    monkeypatch.setattr(link, "REST_SECONDS", 0.0)
    monkeypatch.setattr(postgres_catalogue, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(postgres_catalogue, "RESOLVE_SECONDS", 0.5)


@pytest.mark.parametrize(
    ("is_encrypted", "is_whole"),
    [
        pytest.param(False, False, id="clear"),
        pytest.param(True, False, id="encrypted"),
        pytest.param(False, True, id="each-message", marks=pytest.mark.campaign),
    ],
)
def test_a_connection_cut_at_any_message_of_a_commit_leaves_what_was_reported(
    bench: Callable[..., Bench], is_encrypted: bool, is_whole: bool
) -> None:
    """At each end of a round trip; as a campaign also within them, where the server has only a part of a request."""
    whole = bench(is_encrypted=is_encrypted)
    whole.proxy.arm(None)
    assert whole.commit()
    messages = whole.proxy.seen
    whole.close()
    ends = [number for number, kind in enumerate(messages, 1) if kind == SYNC]
    moments = [Moment(number, answered=True) for number in ends]
    moments += [Moment(number, answered=False) for number in (range(1, len(messages) + 1) if is_whole else ends)]
    assert len(messages) > 15
    one = bench(is_encrypted=is_encrypted)
    outcomes = set()
    for moment in moments:
        one.proxy.arm(moment)
        reported = one.commit()
        assert one.proxy.has_happened(), moment
        found = one.points()
        assert (found > one.before) == reported, f"{moment}: reported {reported}, and {found} points are there"
        outcomes.add((moment.answered, reported))
        one.close()
        one = bench(is_encrypted=is_encrypted)
    # A begin is asked again, so a cut there costs nothing; a cut before the COMMIT loses it; after it, it is found.
    assert outcomes >= {(False, False), (False, True), (True, True)}


@pytest.mark.parametrize(
    "is_whole", [pytest.param(False, id="ends"), pytest.param(True, id="each-step", marks=pytest.mark.campaign)]
)
def test_a_server_killed_at_any_step_of_a_commit_leaves_what_was_reported(
    bench: Callable[..., Bench], is_whole: bool
) -> None:
    """At the first step and at the last, the COMMIT; as a campaign at each."""
    with postgres_server() as server:
        whole = bench(server=server)
        whole.proxy.arm(None)
        assert whole.commit()
        syncs = [number for number, kind in enumerate(whole.proxy.seen, 1) if kind == SYNC]
        steps = syncs if is_whole else [syncs[0], syncs[-1]]
        whole.close()
        outcomes = set()
        for moment in [Moment(number, answered) for number in steps for answered in (False, True)]:
            one = bench(server=server)
            one.proxy.arm(moment, server.kill)
            reported = one.commit()
            assert one.proxy.has_happened(), moment
            assert not reported, "nobody could be asked"
            server.start()
            found = one.points()
            outcomes.add((moment.answered, found > one.before))
            one.close()
        assert (True, True) in outcomes, "the commit that was carried out and whose answer was lost is there"
        assert (False, False) in outcomes


@pytest.mark.fault(80)
def test_a_server_that_is_back_in_time_is_asked_what_became_of_the_commit(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_catalogue, "RESOLVE_SECONDS", 60.0)
    with postgres_server() as server:
        one = bench(server=server)
        one.proxy.arm(None)
        assert one.commit()
        last = len(one.proxy.seen)
        one.close()
        one = bench(server=server)

        def restart() -> None:
            server.kill()
            server.start()

        one.proxy.arm(Moment(last, answered=True), restart)
        assert one.commit()
        assert one.points() > one.before


def test_a_commit_that_is_on_no_synchronous_standby_is_not_reported_when_somebody_ends_the_wait(
    bench: Callable[..., Bench],
) -> None:
    with postgres_server() as server:
        one = bench(server=server)
        server.server.ask("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        server.server.ask("SELECT pg_reload_conf()")
        cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        until(lambda: "nobody" in server.server.ask("SHOW synchronous_standby_names"), "it waits for a standby")
        waiting = threading.Thread(target=lambda: until(lambda: server.server.ask(cancel) != "0", "a commit waits"))
        waiting.start()
        assert not one.commit()
        waiting.join()
        server.server.ask("ALTER SYSTEM RESET synchronous_standby_names")
        server.server.ask("SELECT pg_reload_conf()")
        one.points()


def test_a_failover_that_loses_a_commit_is_told_and_not_gone_on_with(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.fresh_database()
    with Store.create(tmp_path / "store", options=TINY, clock=ManualClock(), catalogued_in=url) as store:
        source = Source(store, data=100_000)
        source.write_random(2)
        source.commit()
        lagging = store.context.catalogue.epoch("web1")
        row = store.context.catalogue.branch("web1", 1)
        source.write_random(2)
        source.commit()
        # As on a standby that lacked the newest transaction: the rows of before, with the epoch of before.
        catalogue = store.context.catalogue
        with catalogue.transaction("web1"):
            catalogue.put(row)
        _put_back(store, lagging.number)
        with pytest.raises(DrengineError, match="failed over to a standby") as told:
            source.commit() if source.write_random(1) else source.writer.commit(generation=1)
        assert told.value.kind is CATALOGUE_DAMAGED
        source.writer.close()
    with pytest.raises(DrengineError) as told:
        Store.open(tmp_path / "store")
    assert told.value.kind is CATALOGUE_DAMAGED
    assert Store.rebuild(tmp_path / "store", options=TINY, clock=ManualClock()).lost == []
    with Store.open(tmp_path / "store", options=TINY, clock=ManualClock()) as store:
        source.store = store
        source.check()


def _put_back(store: Store, number: int) -> None:
    catalogue = store.context.catalogue
    assert isinstance(catalogue, postgres_catalogue.PostgresCatalogue)
    partition = catalogue._partition("web1")._replace(number=number)
    ((statement, values),) = statements.changes([(partition, True)])
    with catalogue._link.errors():
        catalogue._link.connection().execute(statement, values)
