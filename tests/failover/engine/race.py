"""Two orchestrators that do not know of each other fail over one source at the same moment: one generation wins."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Any

from drengine.failover.executor import Executor
from drengine.failover.registry import Registry
from drengine.failover.run import Outcome
from drengine.failover.runbook.values import Mode, Runbook
from drengine.failover.snapshot import observe
from drengine.failover.steps.branches import Branched
from drengine.failover.steps.kinds import StepKinds, step_kinds
from drengine.failover.steps.promote import PromoteStep
from drengine.failover.steps.step import NoSettings, PlannedStep, StepContext, StepResult
from drengine.model.clock import SystemClock
from drengine.store.store import Store
from tests.failover.engine.kill import PROCESSES, begin_run, remote_site
from tests.failover.engine.remote import WorldServer
from tests.failover.engine.world import World, runbook

JITTER_SECONDS_MAX = 0.004
SECONDS_MAX = 60.0


class JitteryPromotion(PromoteStep):
    """Meets the other one right before promoting, then waits a little, by seed."""

    def __init__(self, meeting: Any, seconds: float) -> None:
        self._meeting, self._seconds = meeting, seconds

    async def act(self, step: PlannedStep[NoSettings], context: StepContext) -> StepResult[Branched]:
        await asyncio.to_thread(self._meeting.wait, SECONDS_MAX)
        time.sleep(self._seconds)  # noqa: ASYNC251 - nothing else runs here, and the moment must be exact
        return await super().act(step, context)


def contend(directory: Path, number: int, run: str, book: Runbook, meeting: Any, seconds: float) -> None:
    """The life of one of the two."""
    registry = Registry.open(f"sqlite:///{directory}/registry-{number}.sqlite", clock=SystemClock())
    kinds = StepKinds((*step_kinds().values(), JitteryPromotion(meeting, seconds)))
    with Store.open(directory / "store") as store:
        site = remote_site(directory, store)
        executor = Executor(registry, site, book, kinds=kinds, owner=f"orchestrator-{number}", poll_seconds=0.02)
        asyncio.run(executor.execute(run))


def race(directory: Path, seed: int) -> None:
    """One race, judged."""
    rng = random.Random(seed)
    world, book = World(directory, "shop"), runbook("shop")
    server, meeting = WorldServer(world, directory / "world"), PROCESSES.Barrier(2)
    registries = [
        Registry.open(f"sqlite:///{directory}/registry-{number}.sqlite", clock=SystemClock()) for number in range(2)
    ]
    try:
        runs = [begin_run(registry, Mode.FAILOVER, book, {}) for registry in registries]
        waits = [rng.random() * JITTER_SECONDS_MAX for _ in runs]
        both = [
            PROCESSES.Process(target=contend, args=(directory, number, run, book, meeting, wait))
            for number, (run, wait) in enumerate(zip(runs, waits, strict=True))
        ]
        for each in both:
            each.start()
        for each in both:
            each.join(SECONDS_MAX)
            assert each.exitcode == 0, f"seed {seed}: an orchestrator ended with {each.exitcode}"
        ended = [registry.run(run) for registry, run in zip(registries, runs, strict=True)]
        assert sorted(run.outcome for run in ended) == [Outcome.COMPLETED, Outcome.FAILED], f"seed {seed}: {ended}"
        loser = next(number for number, run in enumerate(ended) if run.outcome is Outcome.FAILED)
        lost = observe(registries[loser].entries(runs[loser]), [], (), 0)
        assert lost.state("promote:shop").code == "fenced", f"seed {seed}"
        assert not lost.state("launch:shop").begun, f"seed {seed}: the loser launched"
        assert world.store.source("shop").generation == 2, f"seed {seed}"
        promoted = [each for each in world.store.branches("shop") if each.role == "promoted"]
        assert len(promoted) == len(world.driver.running) == 1, f"seed {seed}"
        world.judge.verdict()
    finally:
        server.close()
        for registry in registries:
            registry.close()
        world.store.close()
