"""A duty is one orchestrator's at a time, and another's soon after that one died."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from drengine.failover.duties import Duty
from drengine.failover.registry import Registry
from drengine.failover.registry.errors import REGISTRY_UNAVAILABLE
from drengine.model.errors import DrengineError
from tests.clock import ManualClock

SECONDS = 10.0


async def test_a_duty_is_never_twos_and_goes_on_when_its_holder_is_gone(tmp_path: Path) -> None:
    """`clocks`: each holder's own; the registry goes by its own, and one that stands still was stopped (SIGSTOP)."""
    seed = random.getrandbits(32)
    print(f"seed {seed}")
    chance, server = random.Random(seed), ManualClock()
    registry = Registry.open(str(tmp_path / "r"), clock=server)
    clocks = [ManualClock() for _ in range(3)]
    duties = [Duty(registry, clock, "d", owner=f"o{at}", seconds=SECONDS) for at, clock in enumerate(clocks)]
    dead_until = [0.0] * 3
    alone = held = 0.0
    for _ in range(400):
        server.advance(1.0)
        for clock in clocks:
            clock.advance(1.0)
        now = server.monotonic()
        for at, duty in enumerate(duties):
            if now < dead_until[at]:
                continue
            if chance.random() < 0.02:
                dead_until[at] = now + chance.uniform(1, 3 * SECONDS)
            elif chance.random() < 0.02:
                await duty.leave()
            else:
                await duty.take()
        assert sum(duty.is_ours for duty in duties) <= 1
        held = now if any(duty.is_ours for duty in duties) else held
        lively = [at for at in range(3) if now >= dead_until[at]]
        alone = now if not lively else alone
        assert now - max(held, alone) <= 2 * SECONDS + 1, "nobody does it"
    registry.close()


async def test_whoever_does_not_reach_the_registry_stops_before_another_may_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    registry = Registry.open(str(tmp_path / "r"), clock=clock)
    cut_off, other = (Duty(registry, clock, "d", owner=name, seconds=SECONDS) for name in ("one", "two"))
    assert await cut_off.take()
    away = Registry.open(str(tmp_path / "r"), clock=clock)

    def gone(*_: object) -> None:
        raise DrengineError(REGISTRY_UNAVAILABLE, "gone")

    monkeypatch.setattr(away, "renew_lease", gone)
    cut_off._registry = away
    stopped = 0.0
    while not await other.take():
        clock.advance(0.5)
        if not await cut_off.take():
            stopped = stopped or clock.monotonic()
    assert 0 < stopped < clock.monotonic()
    assert not cut_off.is_ours
    for each in (registry, away):
        each.close()
