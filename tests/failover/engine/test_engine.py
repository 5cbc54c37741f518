"""Sessions: what people may ask when, runbooks that change, points by name, looking ahead without touching anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drengine.control.agents import NoAgents
from drengine.failover.answers import AddressChange
from drengine.failover.config import load_orchestrator_config
from drengine.failover.engine import Engine
from drengine.failover.errors import BAD_APPROVAL, RUN_STATE, WOULD_LOSE
from drengine.failover.options import RunOptions
from drengine.failover.orders import Orders
from drengine.failover.plan import plan
from drengine.failover.points import select_point
from drengine.failover.preview import losses, preview
from drengine.failover.registry import Registry
from drengine.failover.registry.errors import RUN_ACTIVE
from drengine.failover.run import Outcome, RunRecord, RunState
from drengine.failover.runbook.values import Mode
from drengine.model.clock import SystemClock
from drengine.model.errors import BAD_POINT, DrengineError, ErrorKind
from drengine.model.inventory import Interface, Inventory
from drengine.notifications import Notice, Notifier, Topic
from drengine.people.door import Door
from drengine.people.errors import NOT_PERMITTED, NOT_SIGNED_IN
from drengine.people.roles import NOBODY, Person, Role
from drengine.store.errors import DAMAGED, UNKNOWN_POINT
from tests.failover.engine.world import BLOCK, World
from tests.persons import ANN, BOB, EVE, VIC, person

BOOK = """
version: 1
name: shop
sources:
  shop:
    launch: {driver: simulated, settings: {say: "SAY"}}
    start: ["true"]
waves:
  - name: all
    sources: [shop]
    before:
      - approval: {prompt: "really?", by: [ann]}
    then:
      - command: [echo, SAY]
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def engine(world: World, tmp_path: Path) -> Iterator[Engine]:
    registry = Registry.open(f"sqlite:///{tmp_path}/registry.sqlite", clock=SystemClock())
    given = {"store": str(world.path), "state": str(tmp_path / "state")}
    config = load_orchestrator_config(None, given)
    yield Engine(config, registry, world.site(), NoAgents(), "here", Door.of(config.state, SystemClock()))
    registry.close()


ADDRESSES = """
addresses:
  rules: [{from: 10.1.0.0/16, to: 10.9.0.0/16, gateway: 10.9.3.1}]
  drill: []
"""


def write_book(tmp_path: Path, said: str = "one", *, ask: bool = False, more: str = "") -> str:
    text = BOOK.replace("SAY", said) + more
    if not ask:
        text = text.replace('    before:\n      - approval: {prompt: "really?", by: [ann]}\n', "")
    path = tmp_path / "shop.yaml"
    path.write_text(text)
    return str(path)


def begin(engine: Engine, mode: Mode, place: str, by: Person = BOB, **options: Any) -> RunRecord:
    book, version = engine.load_runbook(Path(place))
    return engine.create_run(mode, book, version, by, RunOptions(**options))


async def test_a_runbook_that_changes_while_it_runs_changes_nothing_of_the_run(engine: Engine, tmp_path: Path) -> None:
    run = await engine.execute(begin(engine, Mode.FAILOVER, write_book(tmp_path, "one", ask=True)), wait=False)
    assert run.state is RunState.WAITING
    engine.load_runbook(Path(write_book(tmp_path, "two")))
    Orders(engine, ANN).approve(run.id)
    run = await engine.execute(run)
    assert run.outcome is Outcome.COMPLETED
    launched = engine.snapshot(run.id).state("launch:shop")
    assert launched.step.settings.settings == {"say": "one"}
    assert engine.registry.runbook("shop").version != run.version


async def test_of_two_operators_who_start_the_same_run_one_does(engine: Engine, tmp_path: Path) -> None:
    place = write_book(tmp_path, ask=True)
    first = await engine.execute(begin(engine, Mode.FAILOVER, place), wait=False)
    with pytest.raises(DrengineError) as caught:
        begin(engine, Mode.DRILL, place, by=EVE)
    assert caught.value.kind is RUN_ACTIVE
    assert [run.id for run in engine.registry.runs()] == [first.id], "nothing of the second was begun"


@pytest.mark.parametrize(
    ("by", "step", "kind"),
    [
        (NOBODY, "", NOT_SIGNED_IN),
        (VIC, "", NOT_PERMITTED),
        (person("ann", Role.OPERATOR), "", NOT_PERMITTED),
        (EVE, "", BAD_APPROVAL),
        (BOB, "", BAD_APPROVAL),
        (ANN, "launch:shop", BAD_APPROVAL),
        (ANN, "nothing", BAD_APPROVAL),
    ],
)
async def test_an_approval_that_is_none_is_refused(
    engine: Engine, tmp_path: Path, by: Person, step: str, kind: ErrorKind
) -> None:
    run = await engine.execute(begin(engine, Mode.FAILOVER, write_book(tmp_path, ask=True)), wait=False)
    with pytest.raises(DrengineError) as caught:
        Orders(engine, by).approve(run.id, step=step)
    assert caught.value.kind is kind
    assert engine.registry.requests(run.id) == []


async def test_what_a_finished_run_can_no_longer_do(engine: Engine, world: World, tmp_path: Path) -> None:
    place = write_book(tmp_path)
    drill = await engine.execute(begin(engine, Mode.DRILL, place))
    failover = await engine.execute(begin(engine, Mode.FAILOVER, place))
    Orders(engine, BOB).commit(failover.id)
    for refused in (
        lambda: Orders(engine, BOB).rollback(drill.id),
        lambda: Orders(engine, BOB).commit(drill.id),
        lambda: Orders(engine, BOB).abort(drill.id),
        lambda: Orders(engine, BOB).resume(drill.id),
        lambda: Orders(engine, ANN).approve(drill.id),
        lambda: Orders(engine, BOB).rollback(failover.id),
    ):
        with pytest.raises(DrengineError) as caught:
            refused()
        assert caught.value.kind in (RUN_STATE, BAD_APPROVAL)
    assert world.driver.running


async def test_a_rollback_says_before_what_it_would_lose(engine: Engine, world: World, tmp_path: Path) -> None:
    run = await engine.execute(begin(engine, Mode.FAILOVER, write_book(tmp_path)))
    assert losses(engine, run) == []
    (instance,) = world.driver.running
    world.driver.write(instance, 3, b"x" * BLOCK)
    (lost,) = losses(engine, run)
    assert (lost.source, lost.branch, lost.records > 0) == ("shop", 2, True)
    with pytest.raises(DrengineError) as caught:
        Orders(engine, BOB).rollback(run.id)
    assert caught.value.kind is WOULD_LOSE
    Orders(engine, BOB).rollback(run.id, yes=True)
    run = await engine.execute(run)
    assert run.outcome is Outcome.ROLLED_BACK
    with pytest.raises(DrengineError) as caught:
        Orders(engine, BOB).rollback(run.id)
    assert caught.value.kind is RUN_STATE


async def test_once_the_disks_follow_the_recovered_side_nothing_is_rolled_back(engine: Engine, tmp_path: Path) -> None:
    place = write_book(tmp_path)
    failover = await engine.execute(begin(engine, Mode.FAILOVER, place))
    assert (await engine.execute(begin(engine, Mode.REPROTECT, place))).outcome is Outcome.COMPLETED
    with pytest.raises(DrengineError) as caught:
        Orders(engine, BOB).rollback(failover.id)
    assert caught.value.kind is RUN_STATE
    assert (await engine.execute(begin(engine, Mode.FAILBACK, place))).outcome is Outcome.COMPLETED


def test_there_is_no_way_home_for_who_never_left(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(DrengineError) as caught:
        begin(engine, Mode.FAILBACK, write_book(tmp_path))
    assert caught.value.kind is RUN_STATE
    assert engine.registry.runs() == []


async def test_looking_ahead_touches_nothing_and_learns_from_earlier_runs(
    engine: Engine, world: World, tmp_path: Path
) -> None:
    place, before = write_book(tmp_path), world.facts()
    book, _ = engine.read_runbook(Path(place))
    ahead = preview(engine, Mode.FAILOVER, book, RunOptions())
    assert [step.id for step in ahead.steps] == [step.id for step in plan(Mode.FAILOVER, book, {})]
    assert not any(step.measured for step in ahead.steps)
    assert ahead.points["shop"].point == world.store.points("shop")[-1].id
    assert engine.registry.runs() == []
    assert world.facts() == before
    world.driver.seconds = 0.2
    await engine.execute(begin(engine, Mode.DRILL, place))
    again = preview(engine, Mode.FAILOVER, book, RunOptions(point="first"))
    launch = next(step for step in again.steps if step.id == "launch:shop")
    assert launch.measured
    assert launch.predicted_seconds >= 0.2
    assert again.predicted_seconds < ahead.predicted_seconds
    assert again.points["shop"].label == "first"


async def test_a_plan_shows_the_addresses_that_the_run_then_gives(engine: Engine, world: World, tmp_path: Path) -> None:
    place = Path(write_book(tmp_path, more=ADDRESSES))
    card = Interface(name="eth0", mac="52:54:00:00:00:01", addresses=("10.1.3.5/24",))
    told = Inventory(taken_ns=1, interfaces=(card,), name_servers=("10.1.0.53",), search=("example.org",))
    world.store.keep_inventory("shop", told, generation=1)
    book, _ = engine.read_runbook(place)
    found = preview(engine, Mode.FAILOVER, book, RunOptions()).addresses
    assert found == [
        AddressChange(
            source="shop",
            interface="eth0",
            old=["10.1.3.5/24"],
            new=["10.9.3.5/24"],
            dhcp=False,
            mac="",
            gateway="10.9.3.1",
            name_servers=["10.9.0.53"],
            search=["example.org"],
        )
    ]
    in_drill = preview(engine, Mode.DRILL, book, RunOptions()).addresses
    assert [each.new for each in in_drill] == [["10.1.3.5/24"]]
    run = await engine.execute(begin(engine, Mode.FAILOVER, str(place)))
    assert run.outcome is Outcome.COMPLETED
    (request,) = world.driver.running.values()
    assert [each.addresses for each in request.cards] == [("10.9.3.5/24",)]
    assert request.cards[0].mac.startswith("f2:")


@pytest.mark.fault(53)
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("latest", 1),
        ("first", 0),
        ("1-3", 0),
        ("before:2999-01-01T00:00:00Z", 1),
        ("2999-01-01T00:00:00Z", 1),
        ("2999-01-01", 1),
        ("9-9", UNKNOWN_POINT),
        ("1999-01-01T00:00:00Z", UNKNOWN_POINT),
        ("before:yesterday", BAD_POINT),
        ("../../etc/passwd", UNKNOWN_POINT),
        ("a\nb", BAD_POINT),
        ("", BAD_POINT),
        ("x" * 300, BAD_POINT),
    ],
)
def test_a_point_is_meant_by_a_time_an_id_or_a_name(world: World, text: str, found: Any) -> None:
    points = world.store.points("shop")
    if isinstance(found, int):
        assert select_point(world.store, "shop", text) == points[found]
    else:
        with pytest.raises(DrengineError) as caught:
            select_point(world.store, "shop", text)
        assert caught.value.kind is found


def test_a_damaged_point_is_passed_over_by_name_and_refused_by_id(world: World) -> None:
    catalogue = world.store.context.catalogue
    row = catalogue.points("shop", 1)[0]
    with catalogue.transaction():
        catalogue.put(row._replace(damaged=1))
    with pytest.raises(DrengineError) as caught:
        select_point(world.store, "shop", "first")
    assert caught.value.kind is UNKNOWN_POINT
    with pytest.raises(DrengineError) as caught:
        select_point(world.store, "shop", f"1-{row.sequence}")
    assert caught.value.kind is DAMAGED


async def test_what_was_failed_over_fails_over_again_only_after_what_ran_here_was_stopped(
    engine: Engine, world: World, tmp_path: Path
) -> None:
    place = write_book(tmp_path)
    first = await engine.execute(begin(engine, Mode.FAILOVER, place))
    (instance,) = world.driver.running
    world.driver.write(instance, 3, b"x" * BLOCK)
    second = await engine.execute(begin(engine, Mode.FAILOVER, place))
    assert (first.outcome, second.outcome) == (Outcome.COMPLETED, Outcome.COMPLETED)
    assert len(world.driver.running) == 1
    assert instance not in world.driver.running
    assert world.store.source("shop").generation == 3
    world.judge.verdict()
    with pytest.raises(DrengineError) as caught:
        Orders(engine, BOB).rollback(second.id)
    assert caught.value.kind is RUN_STATE
    with pytest.raises(DrengineError) as caught:
        begin(engine, Mode.MIGRATION, place)
    assert caught.value.kind is RUN_STATE
    home = await engine.execute(begin(engine, Mode.FAILBACK, place))
    assert home.outcome is Outcome.COMPLETED
    source = world.sources["shop"]
    assert source.serving
    assert source.disk[3 * BLOCK : 4 * BLOCK] == b"x" * BLOCK
    world.judge.verdict()


async def test_people_are_told_when_a_run_waits_and_how_it_ended(engine: Engine, tmp_path: Path) -> None:
    sent: list[Notice] = []
    notifier = Notifier({"list": lambda notice: not sent.append(notice)}, frozenset(Topic), 1)
    telling = replace(engine, notifier=notifier)
    run = await telling.execute(begin(telling, Mode.FAILOVER, write_book(tmp_path, ask=True)), wait=False)
    Orders(engine, ANN).approve(run.id)
    await telling.execute(run)
    notifier.close()
    assert [(notice.topic, notice.title) for notice in sent] == [
        (Topic.WAITING, "failover of shop waits for an approval"),
        (Topic.ENDED, "failover of shop: completed"),
    ]
    assert all(run.id in notice.text for notice in sent)
