"""Agents that are killed or stopped between freeze and thaw, again and again.

python -m tests.agent.cuts.watchdog_campaign --rounds 100 --seed 1
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.agent.cuts.disks import file_system, writes_within

VICTIM = """
import sys, time
from pathlib import Path
from drengine_agent.cuts.freezer import Freezer
held = Freezer(longest_seconds=float(sys.argv[2]))
held.start()
for _ in range(int(sys.argv[3])):
    held.freeze([Path(sys.argv[1])])
    held.thaw()
held.freeze([Path(sys.argv[1])])
print("frozen", flush=True)
time.sleep(600)
"""
SLACK_SECONDS = 4.0


def with_our_modules() -> dict[str, str]:
    """An environment in which a new interpreter finds what this one finds."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}


@dataclass(frozen=True)
class Outcome:
    """What became of all rounds; `longest`: seconds until a writer got through after the agent was hit."""

    rounds: int
    left_frozen: int
    longest: float


def campaign(place: Path, number: signal.Signals, *, rounds: int, longest_seconds: float, seed: int) -> Outcome:
    """Hit an agent at a random moment of a freeze that it never ends itself, after a few that it did."""
    rng = random.Random(seed)
    left = 0
    longest = 0.0
    for _ in range(rounds):
        victim = subprocess.Popen(
            [sys.executable, "-c", VICTIM, str(place), str(longest_seconds), str(rng.randrange(3))],
            stdout=subprocess.PIPE,
            env=with_our_modules(),
        )
        try:
            assert victim.stdout
            assert victim.stdout.readline() == b"frozen\n"
            time.sleep(rng.uniform(0.0, 0.8 * longest_seconds) if number == signal.SIGKILL else 0.0)
            os.kill(victim.pid, number)
            begun = time.monotonic()
            left += not writes_within(place, longest_seconds + SLACK_SECONDS)
            longest = max(longest, time.monotonic() - begun)
        finally:
            victim.kill()
            victim.wait()
            if victim.stdout:
                victim.stdout.close()
    return Outcome(rounds, left, longest)


def main() -> int:
    """Both signals, so many times each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    failed = 0
    for number in (signal.SIGKILL, signal.SIGSTOP):
        with tempfile.TemporaryDirectory() as folder, file_system(Path(folder) / "f") as (_, place):
            outcome = campaign(place, number, rounds=options.rounds, longest_seconds=1.0, seed=options.seed)
        print(
            f"{number.name}: {outcome.rounds} agents hit in freezes of at most 1 s, {outcome.left_frozen} left frozen; "
            f"writers got through after at most {outcome.longest:.2f} s"
        )
        failed += outcome.left_frozen
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
