"""SIGKILL an agent that tracks live disks, again and again under load: no rescan, no wrong block, no lost write.

`python -m tests.soak.live --kills 100 --losses 3`, as root. One writer writes numbers in order, each complete before
the next, in bursts over two disks. After each kill the newest point at the target must be exactly a prefix of that
order: every block holds the last number that was written there until then. A loss takes the kernel's tracking state
away while the agent is down and the writer goes on: then a rescan says so, only differences travel, and the same
check holds.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
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
from drengine.model.errors import DrengineError
from drengine.nbd.client import NbdClient
from drengine_agent.capture.ebpf.watch import Watch
from drengine_agent.daemon.client import ask
from tests.configurations import TARGET

DISK_BYTES = 16 << 20
BLOCK_BYTES = 4096
BLOCKS = DISK_BYTES // BLOCK_BYTES
STEP = 40_503
BURST_WRITES = 40
BURST_PAUSE_SECONDS = 0.05
NAMES = ("data", "log")
AGENT = """\
source = "{source}"
target = "127.0.0.1:{port}"
state_directory = "state"
tracker = "ebpf"
[[volume]]
name = "data"
path = "{data}"
[[volume]]
name = "log"
path = "{log}"
"""


def place(number: int) -> tuple[int, int]:
    """(disk, block) of a write: disks take turns, so that a prefix spans them."""
    return number % 2, number // 2 * STEP % BLOCKS


def write_for_ever(devices: list[str], progress: str) -> None:
    """The writer's process: number after number, until it is killed."""
    buffer = mmap.mmap(-1, BLOCK_BYTES)
    disks = [os.open(device, os.O_WRONLY | os.O_DIRECT) for device in devices]
    with Path(progress).open("r+b") as file:
        done = mmap.mmap(file.fileno(), 8)
    number = int.from_bytes(done[:8], "little")
    while True:
        for _ in range(BURST_WRITES):
            number += 1
            buffer[:] = number.to_bytes(8, "little") * (BLOCK_BYTES // 8)
            disk, block = place(number)
            os.pwrite(disks[disk], buffer, block * BLOCK_BYTES)
            done[:8] = number.to_bytes(8, "little")
        time.sleep(BURST_PAUSE_SECONDS)


def last_writes(newest: int) -> dict[tuple[int, int], int]:
    """What each block holds after write number `newest`."""
    first = max(1, newest - 2 * BLOCKS + 1)
    return {place(number): number for number in range(first, newest + 1)}


class LiveSoak:
    """One campaign in one folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._site = Site(folder)
        self._random = random.Random(seed)
        self._source = f"soak.{secrets.token_hex(4)}"
        self._devices: list[str] = []
        self._stack = contextlib.ExitStack()
        self.checked = 0
        self.resent_bytes = 0

    def begin(self) -> None:
        """Start everything and wait for the first point."""
        self._stack.callback(Watch.detach, self._source)
        for name in NAMES:
            image = self._folder / f"{name}.img"
            image.write_bytes(bytes(DISK_BYTES))
            command = ["losetup", "--show", "--find", "--direct-io=on", str(image)]
            device = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            self._stack.callback(subprocess.run, ["losetup", "--detach", device], check=False)
            self._devices.append(device)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        data, log = self._devices
        (self._folder / "target.toml").write_text(TARGET.format(port=port))
        (self._folder / "agent.toml").write_text(AGENT.format(port=port, source=self._source, data=data, log=log))
        (self._folder / "progress").write_bytes(bytes(8))
        self._site.run("drengine.cli.main", "target", "init", "--config", "target.toml")
        self._site.start("target", "drengine.cli.main", "target", "run", "--config", "target.toml")
        self._agent = self._start_agent()
        self._site.wait("the first point", lambda: self._shipped(0), seconds=60)
        self._site.start("writer", "tests.soak.live", "--write", *self._devices, str(self._folder / "progress"))

    def kill(self, *, lose: bool) -> None:
        """Kill the agent, perhaps take the tracking state away, start it, and look at what it does."""
        time.sleep(self._random.uniform(0.0, 0.6))
        before = self._written()
        self._site.kill(self._agent)
        if lose:
            Watch.detach(self._source)
            self._site.wait("writes that nobody tracks", lambda: self._written() > before + 200)
        self._agent = self._start_agent()
        status = self._site.wait("a point after the kill", lambda: self._shipped(1), seconds=60)
        expected = ["tracking-lost"] if lose else []
        if list(status["rescans"]) != expected:
            raise StoryFailed(f"rescans {status['rescans']}, expected {expected}")
        if lose:
            self.resent_bytes = status["bytes_sent_plain"]
        shown = self.check()
        if shown < before:
            raise StoryFailed(f"the newest point shows write {shown}, {before} were complete before the kill")

    def check(self) -> int:
        """Compare the newest point with the order of writes; the number of the newest write that it shows.

        Raises:
            StoryFailed: a block is not what it was at that moment.
        """
        point = self._site.run("drengine.cli.main", "points", "--store", "store")[-1]["id"]
        images = []
        for name in NAMES:
            disk = NbdClient(str(self._folder / "recovery.sock"), f"{self._source}/{name}@{point}")
            try:
                images.append(b"".join(disk.read(at, 1 << 20) for at in range(0, DISK_BYTES, 1 << 20)))
            finally:
                disk.close()
        blocks = {
            (disk, block): image[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
            for disk, image in enumerate(images)
            for block in range(BLOCKS)
        }
        newest = max(int.from_bytes(content[:8], "little") for content in blocks.values())
        wanted = last_writes(newest)
        for at, content in blocks.items():
            if content != wanted.get(at, 0).to_bytes(8, "little") * (BLOCK_BYTES // 8):
                raise StoryFailed(f"point {point} shows write {newest}, but {at} has {content[:8].hex()}")
        self.checked += 1
        return newest

    def _start_agent(self) -> subprocess.Popen[bytes]:
        return self._site.start("agent", "drengine_agent", "run", "--config", "agent.toml")

    def _written(self) -> int:
        return int.from_bytes((self._folder / "progress").read_bytes(), "little")

    def _shipped(self, points: int) -> Any:
        """The status once a point that was cut by this process is durable."""
        try:
            status = ask(self._folder / "state/control.sock", "status")
        except (DrengineError, OSError):
            return None  # not up yet
        return (
            status
            if status["has_point"] and status["state"] == "CONTINUOUS" and self._is_durable(status, points)
            else None
        )

    @staticmethod
    def _is_durable(status: dict[str, Any], points: int) -> bool:
        return bool(status["points_cut"] > points and status["durable_sequence"] >= status["sent_sequence"] - 1)

    def close(self) -> None:
        """End all processes, let go of all devices."""
        self._site.close()
        self._stack.close()


def main() -> int:
    """Run the campaign; exit status 1 at the first broken promise, with the seed to repeat it."""
    if sys.argv[1:2] == ["--write"]:
        write_for_ever(sys.argv[2:4], sys.argv[4])
    parser = argparse.ArgumentParser(prog="python -m tests.soak.live")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--losses", type=int, default=3, help="of the kernel's tracking state, among the kills")
    parser.add_argument("--keep", action="store_true", help="leave the folder")
    options = parser.parse_args()
    print(f"seed {options.seed}: {options.kills} kills, {options.losses} of them with lost tracking", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="drengine-live-"))
    soak = LiveSoak(folder, options.seed)
    lossy = set(random.Random(options.seed).sample(range(options.kills), options.losses))
    begun = time.monotonic()
    try:
        soak.begin()
        for number in range(options.kills):
            soak.kill(lose=number in lossy)
            if (number + 1) % 10 == 0 or number in lossy:
                print(
                    f"{time.monotonic() - begun:7.1f} s  {number + 1} kills; resent {soak.resent_bytes} bytes",
                    flush=True,
                )
    except StoryFailed as failure:
        print(f"FAILED (seed {options.seed}, folder {folder}): {failure}", flush=True)
        options.keep = True
        return 1
    finally:
        soak.close()
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{options.kills} kills in {time.monotonic() - begun:.0f} s: {soak.checked} points compared, no wrong block")
    return 0


if __name__ == "__main__":
    sys.exit(main())
