"""The orchestrator's metrics say what the registry holds, whoever did it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from drengine.config import Address
from drengine.console.metrics import OrchestratorMetrics, serve_metrics
from drengine.control.agents import NoAgents
from drengine.control.foreign import Dropped
from drengine.failover.config import OrchestratorConfig
from drengine.failover.daemon import Orchestrator
from drengine.failover.engine import Engine
from drengine.failover.registry import Registry
from drengine.failover.run import Outcome, RunState
from drengine.failover.runbook.values import Mode
from drengine.people.door import Door
from tests.clock import ManualClock
from tests.failover.engine.world import World
from tests.failover.report.runs import BEGIN_NS, Story, drill, failover
from tests.failover.report.test_report import keep_story


def scraped(metrics: OrchestratorMetrics) -> dict[tuple[str, ...], float]:
    text = metrics.metrics.render().decode()
    return {
        (sample.name.removeprefix("drengine_orchestrator_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    clock = ManualClock(BEGIN_NS)
    registry = Registry.open(str(tmp_path / "registry"), clock=clock)
    config = OrchestratorConfig(store=tmp_path, state=tmp_path, metrics=Address("127.0.0.1", 0))
    return Engine(
        config, registry, World(tmp_path / "world").site(clock), NoAgents(), "here", Door.of(config.state, clock)
    )


def kept(engine: Engine, story: Story, id: str) -> None:
    story.run = replace(story.run, id=id)
    keep_story(engine.registry, story)
    token = engine.registry.acquire_lease(f"run:{id}", "x", 60).token
    engine.registry.update_run(id, token=token, finished_ns=story.run.finished_ns)


def test_a_runbook_that_was_never_drilled_grows_old_from_the_moment_it_was_kept(engine: Engine) -> None:
    metrics = OrchestratorMetrics(engine)
    assert not [key for key in scraped(metrics) if "drill" in key[0]]
    story = drill()
    engine.registry.save_runbook("web-shop", story.text)
    clock = engine.site.clock
    assert isinstance(clock, ManualClock)
    clock.advance(100)
    found = scraped(metrics)
    assert found["last_drill_age_seconds", "web-shop"] == 100
    assert found["last_drill_passed", "web-shop"] == 0
    assert found["rto_objective_seconds", "web-shop"] == 120
    assert found["rpo_objective_seconds", "web-shop"] == 2
    assert found["generation", "shop"] == 1


def test_what_runs_measured_is_shown_beside_what_was_promised(engine: Engine) -> None:
    metrics = OrchestratorMetrics(engine)
    story = drill()
    kept(engine, story, "20260101T000000-web-shop-0001")
    clock = engine.site.clock
    assert isinstance(clock, ManualClock)
    clock.advance((story.run.finished_ns - BEGIN_NS) / 1e9 + 50)
    found = scraped(metrics)
    assert found["last_drill_age_seconds", "web-shop"] == pytest.approx(50, abs=0.01)
    assert found["last_drill_passed", "web-shop"] == 1
    assert found["rto_seconds", "drill", "web-shop"] == 16.2
    assert found["rpo_seconds", "drill", "web-shop"] == 1.412
    assert found["runs", "drill", "completed", "web-shop"] == 1


def blocked(engine: Engine, id: str) -> Story:
    """A failover that stopped because its source could not be fenced."""
    story = Story(failover().run.mode)
    story.step("declare")
    story.step("data.before.1")
    story.step("fence:db", ok=False, code="unfenced", message="not fenced")
    story.run = replace(story.run, state=RunState.STOPPED, outcome=Outcome.BLOCKED, reason="source-unfenced")
    kept(engine, story, id)
    return story


def test_messages_that_were_dropped_are_counted(engine: Engine) -> None:
    class Dropping(NoAgents):
        @property
        def dropped(self) -> dict[Dropped, int]:
            return {Dropped.UNSIGNED: 3}

    metrics = OrchestratorMetrics(replace(engine, agents=Dropping()))
    assert [scraped(metrics)["messages_dropped_total", "unsigned"] for _ in range(2)] == [3, 3]


@pytest.mark.fault(47)
def test_a_source_that_is_not_fenced_is_told_until_it_is(engine: Engine) -> None:
    metrics = OrchestratorMetrics(engine)
    kept(engine, failover(), "20260101T000000-web-shop-0001")  # forced, and promoted
    assert scraped(metrics)["source_unfenced", "web-shop", "web"] == 1
    story = Story(Mode.FAILBACK)
    story.step("fence:web", data={"evidence": "agent"})
    kept(engine, story, "20260101T000000-web-shop-0002")
    assert scraped(metrics)["source_unfenced", "web-shop", "web"] == 0


@pytest.mark.fault(47)
@pytest.mark.parametrize(
    ("state", "outcome", "unfenced"),
    [
        (RunState.STOPPED, Outcome.BLOCKED, 1),
        (RunState.FINISHED, Outcome.ABORTED, 0),
        (RunState.FINISHED, Outcome.ROLLED_BACK, 0),
    ],
)
def test_a_fence_that_failed_ends_with_the_run_that_wanted_it(
    engine: Engine, state: RunState, outcome: Outcome, unfenced: int
) -> None:
    metrics = OrchestratorMetrics(engine)
    id = "20260101T000000-web-shop-0001"
    story = blocked(engine, id)
    assert scraped(metrics)["source_unfenced", "web-shop", "db"] == 1
    token = engine.registry.acquire_lease(f"run:{id}", "x", 60).token
    engine.registry.update_run(id, token=token, state=state, outcome=outcome, finished_ns=story.at_ns)
    assert scraped(metrics)["source_unfenced", "web-shop", "db"] == unfenced


def test_a_run_that_needs_a_person_is_told_with_how_long_it_waits(engine: Engine) -> None:
    metrics = OrchestratorMetrics(engine)
    id = "20260101T000000-web-shop-0001"
    story = blocked(engine, id)
    clock = engine.site.clock
    assert isinstance(clock, ManualClock)
    clock.advance((story.at_ns - BEGIN_NS) / 1e9 + 90)
    found = scraped(metrics)
    assert found["runs_unfinished", "failover", "web-shop", "stopped"] == 1
    assert ("runs", "failover", "blocked", "web-shop") not in found
    assert found["run_waiting_seconds", "failover", "source-unfenced", id, "web-shop", "stopped"] == pytest.approx(90)
    assert found["run_seconds", "failover", id, "web-shop"] > 90


def test_a_source_that_a_runbook_names_and_nobody_has_seen_is_told(engine: Engine) -> None:
    engine.registry.save_runbook("web-shop", drill().text)
    found = scraped(OrchestratorMetrics(engine))
    assert found["source_seen", "db"] == 0
    assert found["source_rpo_objective_seconds", "web-shop", "web"] == 2


async def test_metrics_are_served_where_they_are_configured(engine: Engine) -> None:
    import asyncio
    import urllib.request

    async with serve_metrics(Orchestrator(engine)) as port:

        def ask() -> bytes:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                return bytes(answer.read())

        assert b'drengine_orchestrator_generation{source="shop"} 1.0' in await asyncio.to_thread(ask)
    without = replace(engine, config=replace(engine.config, metrics=None))
    async with serve_metrics(Orchestrator(without)) as port:
        assert port == 0
