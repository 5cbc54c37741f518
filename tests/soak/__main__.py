"""`make soak`: SIGKILL the agent and the target again and again under load, and check every replica.

After each kill: the newest point is exactly a prefix of the order in which the disks acknowledged writes; the durable
position never goes back (no acknowledged position is lost); a killed agent takes up its journal without a rescan.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from demo.site import Site, StoryFailed
from demo.story import free_port
from demo.writer import Prefix, acknowledged_writes, check_prefix
from drengine.nbd.client import NbdClient
from tests.configurations import AGENT, TARGET

VOLUME_BYTES = 8 << 20
SLOT_BYTES = 4096
SLOTS = 768
VOLUMES = ("data", "log")


class Soak:
    """One campaign in one folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._site = Site(folder)
        self._seed = seed
        self._random = random.Random(seed)
        slots = [(name, at) for name in VOLUMES for at in range(0, VOLUME_BYTES, SLOT_BYTES)]
        self._places = self._random.sample(slots, SLOTS)
        self._port = free_port()
        self.durable = 0

    def begin(self) -> None:
        """Start everything and wait for the first point."""
        for name in VOLUMES:
            (self._folder / f"{name}.img").write_bytes(bytes(VOLUME_BYTES))
        (self._folder / "target.toml").write_text(TARGET.format(port=self._port))
        (self._folder / "agent.toml").write_text(AGENT.format(port=self._port))
        plan = {
            "sockets": dict.fromkeys(VOLUMES, str(self._folder / "tap.sock")),
            "places": self._places,
            "seed": self._seed,
            "acknowledged": str(self._folder / "acknowledged"),
            "pause_seconds": 0.005,
        }
        (self._folder / "plan.json").write_text(json.dumps(plan))
        self._site.run("drengine.cli.main", "target", "init", "--config", "target.toml")
        self.target, self.agent = self._start_target(), self._start_agent()
        self._site.start("writer", "demo.writer", "plan.json")
        self._site.wait("the agent replicates", self._continuous)

    def _start_target(self) -> subprocess.Popen[bytes]:
        return self._site.start("target", "drengine.cli.main", "target", "run", "--config", "target.toml")

    def _start_agent(self) -> subprocess.Popen[bytes]:
        return self._site.start("agent", "drengine_agent", "run", "--config", "agent.toml")

    def kill_target(self) -> None:
        """Kill it, start it, and see that nothing it acknowledged is gone."""
        self._site.kill(self.target)
        self.target = self._start_target()

    def kill_agent(self) -> None:
        """Kill it and start it."""
        self._site.kill(self.agent)
        self.agent = self._start_agent()

    def check(self, killed: str) -> Prefix:
        """Wait until replication goes on after `killed` was, then compare the newest point.

        Raises:
            StoryFailed: a prefix is broken, a position was lost, a rescan was needed, or it does not go on.
        """
        self._site.wait("the target serves points", self._serves, seconds=60)
        status = self._site.wait("replication goes on", self._continuous, seconds=60)
        if status["durable_sequence"] < self.durable:
            raise StoryFailed(f"the durable position went back from {self.durable} to {status['durable_sequence']}")
        self.durable = status["durable_sequence"]
        if status["rescans"]:
            raise StoryFailed(f"a rescan was needed: {status['rescans']}")
        point = self._site.run("drengine.cli.main", "points", "--store", "store")[-1]["id"]
        disks = {name: NbdClient(str(self._folder / "recovery.sock"), f"shop/{name}@{point}") for name in VOLUMES}
        try:
            acknowledged = len(acknowledged_writes(self._folder / "acknowledged"))
            images = {
                name: b"".join(disk.read(at, 1 << 20) for at in range(0, VOLUME_BYTES, 1 << 20))
                for name, disk in disks.items()
            }
            prefix = check_prefix(
                lambda name, offset, length: images[name][offset : offset + length],
                self._places,
                self._seed,
                acknowledged,
            )
        finally:
            for disk in disks.values():
                disk.close()
        if not prefix.intact:
            raise StoryFailed(f"after killing the {killed}: {prefix.problem}")
        return prefix

    def _continuous(self) -> Any:
        try:
            status = self._site.run("drengine_agent", "status", "--config", "agent.toml")
        except StoryFailed:
            return None  # the agent is not up yet
        return status if status["state"] == "CONTINUOUS" and status["durable_sequence"] > self.durable else None

    def _serves(self) -> bool:
        """Whether a target listens on the recovery socket: a killed one leaves the socket's file behind."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(self._folder / "recovery.sock"))
            return True
        return False

    def pause(self) -> None:
        """Let it run for a random moment."""
        time.sleep(self._random.uniform(0.0, 0.4))

    def pick(self, names: list[str]) -> str:
        """Whose turn it is."""
        return self._random.choice(names)

    def close(self) -> None:
        """End all processes."""
        self._site.close()


def main() -> int:
    """Run the campaign; exit status 1 at the first broken promise, with the seed to repeat it."""
    parser = argparse.ArgumentParser(prog="make soak")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--kills", type=int, default=200, help="of the agent, and as many of the target")
    parser.add_argument("--keep", action="store_true", help="leave the folder")
    options = parser.parse_args()
    print(f"seed {options.seed}: {options.kills} kills each", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="drengine-soak-"))
    soak = Soak(folder, options.seed)
    left = {"agent": options.kills, "target": options.kills}
    begun = time.monotonic()
    try:
        soak.begin()
        while any(left.values()):
            who = soak.pick([name for name, count in left.items() if count])
            soak.pause()
            soak.kill_agent() if who == "agent" else soak.kill_target()
            left[who] -= 1
            prefix = soak.check(who)
            done = 2 * options.kills - sum(left.values())
            if done % 20 == 0:
                print(f"{time.monotonic() - begun:7.1f} s  {done} kills, {prefix.writes} writes replicated", flush=True)
    except StoryFailed as failure:
        print(f"FAILED (seed {options.seed}, {left} left, folder {folder}): {failure}", flush=True)
        options.keep = True
        return 1
    finally:
        soak.close()
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(
        f"{2 * options.kills} kills in {time.monotonic() - begun:.0f} s: no broken prefix, no lost position, no rescan"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
