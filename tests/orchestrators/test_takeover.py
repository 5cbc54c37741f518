"""Two orchestrators on one registry: whoever executes a run may die at any step, and the other takes it up."""

from __future__ import annotations

import random
import secrets
import signal
import time

import pytest

from drengine.failover.run import Outcome, RunState
from drengine.failover.snapshot import TAKEN_UP
from drengine.store.store import Store
from tests.orchestrators.rig import LEASE_SECONDS, Rig, until

EFFECTS = ("fence", "before", "then")
STEPS = (
    "declare",
    "preflight",
    "all.before.1",
    "fence:shop",
    "choose-point:shop",
    "promote:shop",
    "launch:shop",
    "all.then.1",
)
PLACES = [f"{step}.{moment}" for step in STEPS for moment in ("intent", "result")]


def begin(site: Rig, mode: str = "failover") -> str:
    one = site.daemons[0]
    one.ask("PUT", "/runbooks/shop", {"text": site.runbook()})
    run: str = one.ask("POST", "/runs", {"mode": mode, "runbook": "shop"})["run"]
    return run


def judge(site: Rig, run: str, effects: tuple[str, ...] = EFFECTS) -> None:
    """What has to hold however often an executor died."""
    record = site.run_of(run)
    assert (record.state, record.outcome) == (RunState.FINISHED, Outcome.COMPLETED), site.results(run)
    ledger = site.ledger()
    assert not [line for line in ledger if line.startswith("OVERLAP")], ledger
    assert ledger.count(f"launch {run}") == 1, ledger
    for effect in effects:
        assert ledger.count(f"end {effect}") >= 1, ledger
    with Store.open(site.store, read_only=True) as store:
        assert store.source("shop").generation == 2
        assert len([each for each in store.branches("shop") if each.role == "promoted"]) == 1
    for step, tries in site.results(run).items():
        assert tries == [True], f"{step} has more than one result: {tries}"
    tokens = [each.payload["owner"] for each in site.registry.entries(run) if "owner" in each.payload]
    assert tokens == [owner for at, owner in enumerate(tokens) if at == 0 or tokens.index(owner) <= at]


@pytest.mark.fault(57)
@pytest.mark.timeout(300)
def test_killed_at_some_steps_a_failover_ends_as_if_it_had_never_been(site: Rig) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    places = ",".join(random.Random(seed).sample(PLACES, 3))
    killed_everywhere(site, places)
    assert site.met() == set(places.split(","))


@pytest.mark.campaign
@pytest.mark.fault(57)
@pytest.mark.timeout(600)
@pytest.mark.parametrize("places", ["*.intent", "*.result", "*.intent,*.result"])
def test_killed_once_at_every_step_a_failover_ends_as_if_it_had_never_been(site: Rig, places: str) -> None:
    run = killed_everywhere(site, places)
    assert site.met() == {f"{step}{each.lstrip('*')}" for step in site.results(run) for each in places.split(",")}
    assert {place.rpartition(".")[0] for place in PLACES} == set(site.results(run))


@pytest.mark.campaign
@pytest.mark.fault(57, 60)
@pytest.mark.timeout(900)
def test_drills_end_well_while_orchestrators_are_killed_and_stopped_at_random(site: Rig) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for name in ("one", "two", "three"):
        site.add(name)
    site.effects_take("0.7")
    for number in range(10):
        site.ready()
        run = begin(site, "drill")
        deaths = 0
        while site.run_of(run).state not in (RunState.FINISHED, RunState.STOPPED):
            time.sleep(chance.uniform(0.1, 2 * LEASE_SECONDS))
            victim = chance.choice(site.daemons)
            deaths += 1
            if chance.random() < 0.5:
                victim.end()
                victim.start()
            else:
                victim.send(signal.SIGSTOP)
                time.sleep(chance.uniform(0.5, 2 * LEASE_SECONDS))
                victim.send(signal.SIGCONT)
        record, ledger = site.run_of(run), site.ledger()
        assert record.outcome is Outcome.COMPLETED, (number, site.results(run))
        assert ledger.count(f"launch {run}") == 1, "launched once"
        assert not [line for line in ledger if line.startswith("OVERLAP")], ledger
        entries = site.registry.entries(run)
        assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
        print(f"{run}: {deaths} deaths, {len(set(site.owners(run)))} executors")


def killed_everywhere(site: Rig, places: str) -> str:
    for name in ("one", "two"):
        site.add(name, places=places)
    site.ready()
    run = begin(site)
    site.ends(run, 500)
    judge(site, run)
    taken = [each.payload for each in site.registry.entries(run) if each.payload.get("decision") == TAKEN_UP]
    assert len(taken) >= len(site.met()), "each death was followed by another that took the run up"
    return run


@pytest.mark.fault(57)
@pytest.mark.timeout(300)
def test_what_a_killed_executor_left_running_is_ended_before_its_step_is_done_again(site: Rig) -> None:
    first = site.add("one")
    site.add("two")
    site.ready()
    site.effects_take("30")
    run = begin(site)
    until(lambda: "begin before" in site.ledger(), "the command")
    site.effects_take("0.2")
    first.send(signal.SIGKILL)
    site.ends(run)
    judge(site, run)
    assert [line for line in site.ledger() if "before" in line] == ["begin before", "begin before", "end before"]


@pytest.mark.fault(60)
@pytest.mark.timeout(300)
def test_an_orchestrator_that_was_stopped_past_its_lease_wakes_up_to_a_run_that_is_anothers(site: Rig) -> None:
    sleeper = site.add("one", signal="SIGSTOP", places="*.intent")
    site.ready()
    run = begin(site)
    until(lambda: (site.folder / "met").exists() and list((site.folder / "met").iterdir()), "it is stopped")
    site.add("two")
    record = site.ends(run)
    journal = site.registry.entries(run)
    sleeper.send(signal.SIGCONT)
    until(lambda: "lease-lost" in sleeper.log(), "it learns that the run is another's")
    assert record.outcome is Outcome.COMPLETED
    assert site.registry.entries(run) == journal, "it wrote nothing more"
    judge(site, run)


@pytest.mark.timeout(300)
def test_a_daemon_that_is_told_to_end_hands_its_run_over_at_once(site: Rig) -> None:
    first = site.add("one")
    site.ready()
    hold = site.folder / "hold"
    wait = f"sh, -c, 'while ! test -e {hold}; do sleep 0.02; done'"
    text = site.runbook().replace(f"sh, {site.folder}/effect, before", wait)
    first.ask("PUT", "/runbooks/shop", {"text": text})
    run = first.ask("POST", "/runs", {"mode": "drill", "runbook": "shop"})["run"]
    until(lambda: "all.before.1" in {each.step for each in site.registry.entries(run)}, "the step")
    site.add("two")
    site.ready()
    first.send(signal.SIGTERM)
    assert first.process is not None
    assert first.process.wait(30) == 0
    first.process = None
    until(lambda: len(set(site.owners(run))) == 2, "the other takes it up", LEASE_SECONDS * 4)
    hold.touch()
    assert site.ends(run).outcome is Outcome.COMPLETED
    assert "OVERLAP" not in " ".join(site.ledger())
