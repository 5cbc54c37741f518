"""Several targets of one store with a catalogue in a real PostgreSQL: the directory, locks that end, faults 79, 80."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from random import Random

import psycopg
import pytest

from drengine.cli.main import app
from drengine.config import Address
from drengine.model.errors import DrengineError
from drengine.store.catalogue.postgres.link import SCHEMA
from drengine.store.errors import BRANCH_BUSY, LOCK_LOST, TARGET_LIVING, TARGET_NAME_TAKEN, UNKNOWN_TARGET
from drengine.store.locks import Holder
from drengine.store.locks import postgres as locks
from drengine.store.log.writer import BranchWriter
from drengine.store.store import Store
from drengine.store.targets import SILENT_SECONDS, Introduction, TargetState
from drengine.target import ownership
from drengine.terminal import main
from drengine.wire.events import Moved, Refuse
from tests.postgres import Postgres
from tests.system.test_hang_up import free_port
from tests.target.agent import VOLUMES, Agent, Site, data_batch, mark
from tests.target.sharing import Targets, running
from tests.target.test_ownership import OFFERS_NOT, told, until

pytestmark = pytest.mark.timeout(120)
LOCK_SECONDS = 1.0
A, B = (Introduction(name, (f"{name}.example:7440",), f"{name}.example:9464", "1") for name in "ab")


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks end soon, and targets report often."""
    usual = locks.PostgresLocks.__init__.__kwdefaults__ or {}
    monkeypatch.setattr(locks.PostgresLocks.__init__, "__kwdefaults__", {**usual, "seconds": LOCK_SECONDS})
    monkeypatch.setattr(ownership, "REPORT_SECONDS", 0.05)


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.fresh_database()


@pytest.fixture
def folder(tmp_path: Path, url: str) -> Path:
    """A store whose segments lie in one directory, which all targets of a test use."""
    Store.create(tmp_path / "store", catalogued_in=url).close()
    return tmp_path / "store"


class Shared(Targets):
    """Targets whose locks and directory are the database's."""

    async def start(self, name: str) -> Site:
        address = Address("127.0.0.1", free_port())
        store = Store.open(self.folder, holder=Holder(name, (str(address),)))
        return await self.serve(name, address, store)


def shared(folder: Path, *names: str) -> AbstractAsyncContextManager[Shared]:
    return running(Shared(folder), *names)


def aged(url: str, name: str, seconds: float) -> None:
    """A target was not heard of for so long."""
    with psycopg.connect(url) as connection:
        ago = f"UPDATE {SCHEMA}.target SET seen = clock_timestamp() - %s * interval '1 second' WHERE name = %s"
        connection.execute(ago, (seconds, name))


def refused(doing: Callable[[], object]) -> object:
    with pytest.raises(DrengineError) as error:
        doing()
    return error.value.kind


def test_the_directory_of_targets(folder: Path, url: str) -> None:
    with Store.open(folder) as one, Store.open(folder) as other:
        assert one.targets.is_shared
        assert [each.name for each in one.targets.report(A)] == ["a"]
        assert [each.name for each in other.targets.report(B)] == ["a", "b"]
        (a, _) = one.targets.all()
        assert (a.addresses, a.metrics, a.version) == (A.addresses, A.metrics, A.version)
        assert a.is_living and a.takes_sources and a.sources == 0

        assert one.targets.placed_at("shop") == ""
        one.targets.place("shop", "a")
        one.targets.place("bank", "a")
        other.targets.place("bank", "b")
        assert one.targets.placed() == {"shop": "a", "bank": "b"}
        assert [each.sources for each in one.targets.all()] == [1, 1]
        one.targets.place("bank", "")
        assert other.targets.placed() == {"shop": "a"}

        other.targets.drain("a", True)
        assert one.targets.report(A)[0].state is TargetState.DRAINING, "also when it reports again"
        other.targets.drain("a", False)
        assert one.targets.all()[0].state is TargetState.SERVING

        assert refused(lambda: other.targets.forget("a")) is TARGET_LIVING
        aged(url, "a", 60)
        assert not other.targets.all()[0].is_living
        assert 59 < other.targets.all()[0].seen_seconds < 120
        other.targets.forget("a")
        one.targets.leave("b")
        assert [(each.name, each.state) for each in other.targets.all()] == [("b", TargetState.STOPPED)]
        assert refused(lambda: other.targets.forget("a")) is UNKNOWN_TARGET
        assert refused(lambda: other.targets.drain("a", True)) is UNKNOWN_TARGET


def test_a_twin_is_refused_and_one_that_moved_or_came_back_is_not(folder: Path, url: str) -> None:
    """Two hosts of one image have one name: they would take each other's locks for their own earlier ones."""
    moved = A._replace(addresses=("elsewhere.example:7440",))
    with Store.open(folder) as one, Store.open(folder) as other:
        one.targets.report(A)
        assert refused(lambda: other.targets.report(moved)) is TARGET_NAME_TAKEN
        assert one.targets.report(A)[0].addresses == A.addresses, "the first one is not disturbed"
        assert other.targets.report(A)[0].addresses == A.addresses, "a new process at the same address"
        aged(url, "a", SILENT_SECONDS)
        assert other.targets.report(moved)[0].addresses == moved.addresses
        other.targets.leave("a")
        assert one.targets.report(A)[0].addresses == A.addresses


async def test_a_target_whose_name_is_taken_does_not_start(folder: Path) -> None:
    async with shared(folder, "a") as targets:
        twin = Shared(folder)
        with pytest.raises(DrengineError) as error:
            await twin.start("a")
        assert error.value.kind is TARGET_NAME_TAKEN
        assert targets.sites["a"].daemon.ownership.trouble is None


def test_threads_share_the_directory(folder: Path) -> None:
    with Store.open(folder) as store:
        troubles: list[Exception] = []

        def work(number: int) -> None:
            try:
                for turn in range(20):
                    store.targets.place(f"shop{number}", f"t{turn}")
                    assert store.targets.placed_at(f"shop{number}") == f"t{turn}"
            except (DrengineError, AssertionError) as error:
                troubles.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not troubles


@pytest.mark.fault(79)
def test_of_two_targets_that_believe_to_own_a_source_one_appends(folder: Path) -> None:
    with Store.open(folder, holder=Holder("a", A.addresses)) as one, Store.open(folder) as other:
        one.ensure_source("shop")
        stale = one.writer("shop", generation=1)
        stale.append_geometry(1, mark(1), VOLUMES, generation=1)
        stale.commit(generation=1)
        assert refused(lambda: other.writer("shop", generation=1)) is BRANCH_BUSY
        assert other.owner("shop") == Holder("a", A.addresses)
        one.context.locks.close()  # it renews no more, and does not know it yet
        fresh = taken(other)
        assert fresh.durable.sequence == 1
        stale._lock.until = float("inf")  # its clock stands still
        stale.append_batch(2, mark(2), data_batch([(0, b"stale")]), generation=1)
        assert refused(lambda: stale.commit(generation=1)) is LOCK_LOST
        fresh.append_batch(2, mark(2), data_batch([(0, b"fresh")]), generation=1)
        assert fresh.commit(generation=1).sequence == 2
        stale.close()
        fresh.close()
        with other.head_view("shop") as view:
            assert bytes(view.read(1, 0, 5)) == b"fresh"


def taken(store: Store) -> BranchWriter:
    """A writer of the branch, once the lock of before is over."""
    while True:
        try:
            return store.writer("shop", generation=1)
        except DrengineError as error:
            assert error.kind is BRANCH_BUSY, error


async def test_a_source_is_moved_and_taken_over_by_the_locks_of_the_database(folder: Path) -> None:
    async with shared(folder, "a", "b") as targets:
        agent = await targets.ask("a")
        assert isinstance(agent, Agent)
        await agent.declare()
        last = await agent.cut()
        await agent.acknowledged(last)
        moved = await targets.ask("b")
        assert isinstance(moved, Moved) and moved.owner == "a"
        assert isinstance(await targets.ask("b", abilities=OFFERS_NOT), Refuse)
        site = targets.sites["a"]
        site.store.context.locks.close()  # as when it is killed: nothing is renewed

        async def taken_over() -> bool:
            answer = await targets.ask("b", abilities=OFFERS_NOT, instance=b"j" * 16)
            return isinstance(answer, Agent) and answer.welcome.durable_sequence == last

        async with asyncio.timeout(20):
            while not await taken_over():  # noqa: ASYNC110 - the server's clock decides
                await asyncio.sleep(0.05)
        assert targets.sites["b"].store.targets.placed() == {"shop": "b"}


@pytest.mark.fault(80)
async def test_a_target_cut_off_from_the_catalogue_ends_its_sessions_and_acknowledges_nothing_more(
    folder: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with shared(folder, "a", "b") as targets:
        agent = await targets.ask("a")
        assert isinstance(agent, Agent)
        await agent.declare()
        await agent.acknowledged(await agent.cut())
        known = agent.acks[-1]
        site = targets.sites["a"]

        def cut_off(*_: object, **__: object) -> object:
            raise psycopg.OperationalError("the network is gone")

        # From here on nothing reaches the database; b has its connections already.
        real = psycopg.connect
        monkeypatch.setattr(psycopg, "connect", cut_off)
        for link in links_of(site):
            link.drop()
        for _ in range(3):
            with contextlib.suppress(DrengineError, OSError):
                await agent.write(0, b"x" * 4096)
                await agent.cut()
        await agent.ended()
        assert agent.acks[-1] == known, "nothing is acknowledged that the catalogue did not take"
        refusal = next(event for event in agent.events if isinstance(event, Refuse))
        assert refusal.retryable and refusal.code in ("catalogue-unavailable", "lock-lost")
        monkeypatch.setattr(psycopg, "connect", real)
        async with asyncio.timeout(20):
            while not isinstance(answer := await targets.ask("b", abilities=OFFERS_NOT), Agent):
                assert isinstance(answer, Refuse)
                await asyncio.sleep(0.05)
        assert answer.welcome.durable_sequence == known


@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_ends_a_target_the_next_one_goes_on_where_it_was(folder: Path, seed: int) -> None:
    """The short form of `make targets`, in one process and without hosts that are cut off."""
    chance, names = Random(seed), ("a", "b", "c")
    async with shared(folder, *names) as targets:
        owner, agent, last = "a", await anybody(targets, "a"), 0
        await agent.acknowledged(await agent.declare())
        for number, blow in enumerate(chance.sample(("kill", "stop", "drain"), 3), 1):
            await agent.write(0, bytes([number]) * 4096)
            last = await agent.cut()
            await agent.acknowledged(last)
            site = targets.sites[owner]
            if blow == "drain":
                site.store.targets.drain(owner, True)
                await agent.ended()
            elif blow == "kill":
                site.store.context.locks.close()  # nothing is renewed, and nothing let go
                await agent.close()
            else:
                await targets.stop(owner)
            left = [name for name in names if name != owner]
            before, owner = owner, chance.choice(left)
            agent = await anybody(targets, owner)
            assert agent.welcome.durable_sequence == last, blow
            with targets.sites[owner].store.head_view("shop") as view:
                assert bytes(view.read(1, 0, 4096)) == bytes([number]) * 4096
            if blow == "drain":
                site.store.targets.drain(before, False)
            else:
                await again(targets, before)


async def anybody(targets: Shared, name: str) -> Agent:
    """A session with this target, as soon as the lock that is in the way is over."""
    async with asyncio.timeout(20):
        while not isinstance(answer := await targets.ask(name, abilities=OFFERS_NOT), Agent):
            assert isinstance(answer, Refuse) and answer.retryable
            await asyncio.sleep(0.05)
    return answer


async def again(targets: Shared, name: str) -> None:
    """Start a target again that was ended, one way or another."""
    if name in targets.sites:
        await targets.stop(name)
    await targets.start(name)


def links_of(site: Site) -> list[object]:
    """Every connection of a target with the database that its sessions and locks use."""
    found: list[object] = []
    context = site.store.context
    found += [context.locks._link._link, context.locks._renewing]
    for session in site.daemon.reception.sessions.values():
        assert session._ingest
        found.append(session._ingest._writer._catalogue._link)
    return found


def test_a_target_that_comes_back_takes_its_locks_at_once(folder: Path) -> None:
    """Its process of before was killed, or could not say that it let go."""
    me = Holder("a", A.addresses)
    with Store.open(folder, holder=me) as before, Store.open(folder, holder=me) as after:
        before.ensure_source("shop")
        killed = before.writer("shop", generation=1)
        killed.append_geometry(1, mark(1), VOLUMES, generation=1)
        with Store.open(folder, holder=Holder("b", B.addresses)) as other:
            assert refused(lambda: other.writer("shop", generation=1)) is BRANCH_BUSY
        with contextlib.closing(after.writer("shop", generation=1)) as writer:
            assert refused(lambda: after.writer("shop", generation=1)) is BRANCH_BUSY, "of one process one writes"
            assert refused(lambda: killed.commit(generation=1)) is LOCK_LOST
            writer.append_geometry(1, mark(1), VOLUMES, generation=1)
            assert writer.commit(generation=1).sequence == 1
        killed.close()


@pytest.mark.parametrize("comes_back_early", [True, False], ids=["before it is over", "after"])
async def test_a_session_whose_lock_is_over_ends_while_its_commit_hangs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, comes_back_early: bool
) -> None:
    async with shared(folder, "a", "b") as targets:
        agent = await targets.ask("a")
        assert isinstance(agent, Agent)
        await agent.acknowledged(await agent.declare())
        site = targets.sites["a"]
        hanging = threading.Event()
        session = site.daemon.reception.sessions["shop"]
        assert session._writer is not None

        def hangs(**_: object) -> None:
            hanging.wait(60)
            raise DrengineError(LOCK_LOST, "at last")

        monkeypatch.setattr(session._writer, "commit", hangs)
        site.store.context.locks._closed.set()  # nothing is renewed any more
        await agent.cut()
        try:
            if not comes_back_early:
                refusal = await agent.refused()
                assert (refusal.code, refusal.retryable) == ("lock-lost", True)
            answer = await targets.ask("a")
            assert isinstance(answer, Refuse)
            assert (answer.code, answer.retryable) == ("lock-lost", True), "it is not kept waiting for the old session"
            assert not hanging.is_set()
        finally:
            monkeypatch.undo()
            hanging.set()


async def test_draining_by_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with shared(folder, "a", "b") as targets:
        await until(lambda: all(len(site.daemon.ownership.targets) == 2 for site in targets.sites.values()))
        agent = await targets.ask("a")
        assert isinstance(agent, Agent)
        await agent.acknowledged(await agent.declare())
        words = ["--store", str(folder), "--json"]
        drained = asyncio.create_task(asyncio.to_thread(main, app, ["target", "drain", "a", *words]))
        assert (await told(agent)).owner == "b"
        assert await drained == 0
        assert json.loads(capsys.readouterr()[0]) == {"target": "a", "draining": True, "sources_left": []}
        assert await asyncio.to_thread(main, app, ["targets", *words]) == 0
        shown = {each["name"]: each["state"] for each in json.loads(capsys.readouterr()[0])["targets"]}
        assert shown == {"a": "draining", "b": "serving"}
        assert await asyncio.to_thread(main, app, ["targets", "--store", str(folder)]) == 0
        assert "draining" in capsys.readouterr()[0]
        assert await asyncio.to_thread(main, app, ["target", "drain", "a", "--undo", *words]) == 0
        capsys.readouterr()
        assert await asyncio.to_thread(main, app, ["target", "forget", "b", *words]) == TARGET_LIVING.exit_code
        await targets.stop("b")
        assert await asyncio.to_thread(main, app, ["target", "forget", "b", *words]) == 0
