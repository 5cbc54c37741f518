"""Campaigns that take their time: kills in a row at random places, and races.

python -m tests.failover.engine.campaign kills --rounds 200 --seed 1
python -m tests.failover.engine.campaign races --rounds 1000 --seed 1
"""

from __future__ import annotations

import argparse
import random
import secrets
import sys
import tempfile
from pathlib import Path

from drengine.failover.runbook.values import Mode
from tests.failover.engine.kill import story
from tests.failover.engine.race import race


def kills(rounds: int, rng: random.Random) -> None:
    """Stories with up to four kills each."""
    with tempfile.TemporaryDirectory() as directory:
        modes = (Mode.FAILOVER, Mode.FAILBACK, Mode.DRILL, Mode.MIGRATION, Mode.REPROTECT)
        stories = [(mode, False) for mode in modes] + [(Mode.FAILOVER, True), (Mode.MIGRATION, True)]
        peace = {
            (mode, back): story(Path(directory) / f"{mode.value}-{back}", mode, [], back=back) for mode, back in stories
        }
    for number in range(rounds):
        mode, back = rng.choice(list(peace))
        wanted = peace[mode, back]
        places = [rng.randrange(2 * wanted.entries) for _ in range(rng.randint(1, 4))]
        print(f"{number}: {mode.value}{', rolled back,' if back else ''} killed at {places}", flush=True)
        with tempfile.TemporaryDirectory() as directory:
            assert story(Path(directory) / "w", mode, places, back=back).state == wanted.state


def races(rounds: int, rng: random.Random) -> None:
    """Races of two orchestrators."""
    for number in range(rounds):
        seed = rng.randrange(1 << 32)
        if number % 50 == 0:
            print(f"{number}: seed {seed}", flush=True)
        with tempfile.TemporaryDirectory() as directory:
            race(Path(directory) / "w", seed)


CAMPAIGNS = {"kills": kills, "races": races}


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.failover.engine.campaign")
    parser.add_argument("what", choices=CAMPAIGNS)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    given = parser.parse_args()
    print(f"{given.what}: seed {given.seed}", flush=True)
    CAMPAIGNS[given.what](given.rounds, random.Random(given.seed))
    print(f"{given.rounds} rounds of {given.what}, seed {given.seed}: one writer at every instant")
    return 0


if __name__ == "__main__":
    sys.exit(main())
