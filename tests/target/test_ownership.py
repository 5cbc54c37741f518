"""Several targets of one store: who has a source, whom agents are sent to, draining, and what each target shows."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drengine.store.locks import Holder
from drengine.store.targets import LIVING_SECONDS, TargetInfo, TargetState
from drengine.target import ownership
from drengine.target.metrics import TAKEOVERS
from drengine.target.ownership import Standing, better_place
from drengine.wire.events import ABILITIES, Endpoint, Moved, Refuse
from tests.target.agent import Agent
from tests.target.sharing import Targets, sharing

OFFERS_NOT = ABILITIES - {"moved"}
SECONDS = 20.0


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets report often, so that no test waits for them."""
    monkeypatch.setattr(ownership, "REPORT_SECONDS", 0.05)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - any part of any daemon may make it true
            await asyncio.sleep(0.01)


async def told(agent: Agent) -> Moved:
    """Where the agent is sent when its session ends."""
    await agent.until(lambda: any(isinstance(event, Moved) for event in agent.events))
    return next(event for event in agent.events if isinstance(event, Moved))


async def looked(targets: Targets) -> None:
    """Each target has heard of all the others."""
    everybody = set(targets.sites)
    await until(
        lambda: all(
            everybody <= {each.name for each in site.daemon.ownership.targets if each.is_living}
            for site in targets.sites.values()
        )
    )


async def missed(targets: Targets, gone: str) -> None:
    """Each target knows that one is gone."""
    sites = targets.sites.values()
    await until(
        lambda: all(each.is_living is (each.name != gone) for site in sites for each in site.daemon.ownership.targets)
    )


async def test_who_is_asked_and_has_not_the_source_names_the_target_that_has_it(tmp_path: Path) -> None:
    async with sharing(tmp_path, "a", "b", "c") as targets:
        await targets.ask("a")
        for other in "bc":
            answer = await targets.ask(other)
            assert isinstance(answer, Moved)
            assert answer.owner == "a"
            assert answer.addresses == (Endpoint(*targets.sites["a"].address),)
            refused = await targets.ask(other, abilities=OFFERS_NOT)
            assert isinstance(refused, Refuse)
            assert (refused.code, refused.retryable) == ("source-elsewhere", True)
        assert len(targets.sites["a"].daemon.reception.sessions) == 1
        assert not targets.sites["b"].daemon.reception.sessions


async def test_new_sources_go_where_there_are_fewest(tmp_path: Path) -> None:
    async with sharing(tmp_path, "a", "b", "c") as targets:
        await looked(targets)
        for number in range(9):
            _, agent = await targets.join("a", f"shop{number}")
            await agent.acknowledged(await agent.declare())
        assert Counter(targets.between.places.values()) == {"a": 3, "b": 3, "c": 3}


async def test_a_source_comes_back_to_where_it_was_last_however_many_are_there(tmp_path: Path) -> None:
    async with sharing(tmp_path, "a", "b") as targets:
        await looked(targets)
        agents = [(await targets.ask("a", f"shop{number}", abilities=OFFERS_NOT)) for number in range(3)]
        for agent in agents:
            assert isinstance(agent, Agent)
            await agent.acknowledged(await agent.declare())
            await agent.close()
        await until(lambda: not targets.between.held)
        assert await targets.join("b", "shop1")
        assert targets.between.places["shop1"] == "a"


async def test_a_source_whose_target_is_gone_waits_for_its_lock_and_loses_nothing_acknowledged(tmp_path: Path) -> None:
    async with sharing(tmp_path, "a", "b", "c") as targets:
        await looked(targets)
        _, agent = await targets.join("a")
        await agent.declare()
        await agent.write(0, b"x" * 4096)
        last = await agent.cut()
        await agent.acknowledged(last)
        owner = targets.between.places["shop"]
        other = next(name for name in "abc" if name != owner)
        await targets.kill(owner)
        refused = await targets.ask(other, abilities=OFFERS_NOT)
        assert isinstance(refused, Refuse) and refused.code == "source-elsewhere"
        targets.between.expire(owner)
        targets.between.now += LIVING_SECONDS
        await missed(targets, owner)
        name, agent = await targets.join(other)
        assert agent.welcome.durable_sequence == last
        assert targets.between.places["shop"] == name != owner
        page = targets.sites[name].daemon.metrics.metrics.render()
        assert f"\n{TAKEOVERS.full_name} 1.0".encode() in page


async def test_draining_moves_every_source_without_a_gap_and_undoing_it_lets_new_ones_in(tmp_path: Path) -> None:
    async with sharing(tmp_path, "a", "b") as targets:
        await looked(targets)
        agents = {}
        for number in range(6):
            agents[number] = await targets.ask("a", f"shop{number}", abilities=ABILITIES)
        ours = {number: agent for number, agent in agents.items() if isinstance(agent, Agent)}
        assert ours
        lasts = {}
        for number, agent in ours.items():
            await agent.declare()
            await agent.write(0, bytes([number]) * 65536)
            lasts[number] = await agent.cut()
        directory = targets.sites["b"].store.targets
        directory.drain("a", True)
        for number, agent in ours.items():
            moved = await told(agent)
            assert moved.owner == "b"
            assert agent.acks[-1] == lasts[number], "what had arrived was acknowledged before the end"
            assert (f"shop{number}", 1) not in targets.between.held, "the lock is free when the agent hears of it"
            name, next_one = await targets.join("a", f"shop{number}")
            assert name == "b"
            assert next_one.welcome.durable_sequence == lasts[number]
        assert isinstance(await targets.ask("a", "new"), Moved)
        directory.drain("a", False)
        await until(lambda: all(each.takes_sources for each in targets.sites["b"].daemon.ownership.targets))
        assert await targets.join("b", "new") and targets.between.places["new"] == "a"


async def test_a_draining_target_still_protects_a_source_that_reaches_no_other(tmp_path: Path) -> None:
    async with sharing(tmp_path, "a", "b") as targets:
        await looked(targets)
        targets.sites["a"].store.targets.drain("a", True)
        await until(lambda: targets.sites["a"].daemon.ownership.is_draining)
        agent = await targets.ask("a", abilities=OFFERS_NOT)
        assert isinstance(agent, Agent)
        await agent.acknowledged(await agent.declare())
        targets.sites["a"].daemon.ownership._give_away()
        await agent.acknowledged(await agent.cut())


async def test_a_target_that_stops_names_one_that_goes_on(tmp_path: Path) -> None:
    async with sharing(tmp_path, "a", "b") as targets:
        await looked(targets)
        agent = await targets.ask("a", abilities=ABILITIES)
        assert isinstance(agent, Agent)
        last = await agent.declare()
        await agent.acknowledged(last)
        site = targets.sites.pop("a")
        await site.daemon.stop()
        assert (await told(agent)).owner == "b"
        assert targets.between.stopped == {"a"}
        await agent.close()
        site.store.close()


async def test_each_source_is_shown_by_one_target(tmp_path: Path) -> None:
    async with sharing(tmp_path, "a", "b", "c") as targets:
        await looked(targets)
        for number in range(6):
            _, agent = await targets.join("a", f"shop{number}")
            await agent.declare()
            await agent.acknowledged(await agent.cut())

        def shown() -> Counter[str]:
            return Counter(state.name for site in targets.sites.values() for state in site.daemon.sources.all())

        everything = Counter({f"shop{number}": 1 for number in range(6)})
        assert shown() == everything
        await targets.kill("b")
        targets.between.expire("b")
        targets.between.now += LIVING_SECONDS
        await until(lambda: shown() == everything)
        gone = sum(place == "b" for place in targets.between.places.values())
        assert gone and targets.sites["a"].daemon.ownership.unowned == gone


async def test_a_catalogue_that_is_away_ends_no_target(tmp_path: Path) -> None:
    async with sharing(tmp_path, "a", "b") as targets:
        await looked(targets)
        ours = targets.sites["a"].daemon.ownership
        targets.between.unreachable = True
        await until(lambda: ours.trouble is not None)
        targets.between.unreachable = False
        await until(lambda: ours.trouble is None)


names = st.sampled_from("abcd")
infos = st.builds(
    TargetInfo,
    names,
    st.just(("h:1",)),
    st.just(""),
    st.just("1"),
    st.sampled_from(TargetState),
    st.sampled_from([0.0, LIVING_SECONDS]),
    st.integers(0, 3),
)


@given(st.lists(infos, unique_by=lambda each: each.name), names, st.sampled_from(["", *"abcd"]), st.booleans())
def test_a_source_is_only_sent_to_another_target_that_takes_it(
    targets: list[TargetInfo], me: str, placed: str, leaving: bool
) -> None:
    found = better_place(me, Standing(None, placed), targets, leaving=leaving)
    if found is not None:
        assert found.name != me and found.takes_sources
        assert placed != me or leaving
        # Whoever it is sent to does not send it back, on the same facts: no ping-pong.
        others = [each for each in targets if each.name != me or not leaving]
        assert better_place(found.name, Standing(None, placed), others, leaving=False) is None
    elif leaving or placed == "":
        possible = [each for each in targets if each.name != me and each.takes_sources]
        ours = next((each.sources for each in targets if each.name == me), 0)
        assert not possible or (not leaving and min(each.sources for each in possible) >= ours)


def test_holders_without_a_name_are_no_targets() -> None:
    assert Standing(Holder(), "").holder == Holder("", ())


@pytest.mark.parametrize("state", TargetState)
def test_only_a_living_serving_target_takes_sources(state: TargetState) -> None:
    info = TargetInfo("a", (), "", "1", state, 0.0, 0)
    assert info.takes_sources is (state is TargetState.SERVING)
    assert info.is_living is (state is not TargetState.STOPPED)
