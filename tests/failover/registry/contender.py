"""A process that wants leases and runs like others of its kind.

`python -m tests.failover.registry.contender URL WHAT OWNER ...`; says what became of it as a JSON line.
"""

from __future__ import annotations

import json
import random
import sys

from drengine.failover.registry import Registry
from drengine.failover.registry.errors import LEASE_HELD, LEASE_LOST, RUN_ACTIVE
from drengine.failover.run import Event, JournalEntry
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from tests.failover.registry.rig import run_named

RUN = "r1"
LEASE = f"run:{RUN}"


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def journal(registry: Registry, owner: str, seed: int, turns: int) -> None:
    """Get the lease, append a few entries under it, let it go or leave it to run out; as often as it takes."""
    chance = random.Random(seed)
    while turns:
        try:
            lease = registry.acquire_lease(LEASE, owner, chance.choice((0.0, 0.02, 5.0)))
        except DrengineError as error:
            assert error.kind is LEASE_HELD, error
            continue
        turns -= 1
        try:
            for number in range(chance.randrange(5)):
                payload = {"token": lease.token, "owner": owner}
                registry.append(RUN, lease.token, JournalEntry("s", Event.PROGRESS, number, 0, payload))
                if chance.random() < 0.3:
                    lease = registry.renew_lease(lease, chance.choice((0.0, 0.02, 5.0)))
        except DrengineError as error:
            assert error.kind is LEASE_LOST, error
        else:
            registry.release_lease(lease)


def start_runs(registry: Registry, owner: str, rounds: int) -> None:
    """Start a run of the same sources as everybody else, in each round."""
    won = []
    for number in range(rounds):
        try:
            registry.create_run(run_named(f"{owner}-{number}", f"a{number}", f"b{number}"))
            won.append(number)
        except DrengineError as error:
            assert error.kind is RUN_ACTIVE, error
    say(won=won)


def hold(registry: Registry, owner: str, seconds: float) -> None:
    """Hold the lease; when told so, try to do everything that only its holder may."""
    lease = registry.acquire_lease(LEASE, owner, seconds)
    say(token=lease.token)
    sys.stdin.readline()
    results = []
    for attempt in (
        lambda: registry.append(RUN, lease.token, JournalEntry("late", Event.RESULT, 1, 0)),
        lambda: registry.update_run(RUN, token=lease.token, reason="late"),
        lambda: registry.renew_lease(lease, 60),
    ):
        try:
            attempt()
            results.append("accepted")
        except DrengineError as error:
            results.append(error.kind.id)
    registry.release_lease(lease)
    say(results=results)


def main() -> None:
    url, what, owner, *rest = sys.argv[1:]
    registry = Registry.open(url, clock=SystemClock())
    if what == "journal":
        journal(registry, owner, int(rest[0]), int(rest[1]))
    elif what == "runs":
        start_runs(registry, owner, int(rest[0]))
    else:
        hold(registry, owner, float(rest[0]))


if __name__ == "__main__":
    main()
