"""A machine is restored whole onto an empty disk: booted from a live system, filled by the one-file agent, rebooted."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.story import free_port
from drengine.model.grants import Access
from drengine.model.points import Cut, Mark, PointKind, VolumeGeometry
from drengine.store.store import Store
from tests.agent.install.onefile import build_here
from tests.system.guest import DISK_BYTES, make_guest_disk, missing_for_guest
from tests.system.live import HOST, NETWORK, PYTHON, boot, boot_live, make_live, missing_for_live
from tests.target.agent import data_batch

pytestmark = [pytest.mark.timeout(600), pytest.mark.campaign]

PIECE = 65536
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
TARGET = """store = "{folder}/store"
listen = "127.0.0.1:{port}"
[tls]
identities = "required"
certificate = "{folder}/outpost/certificate.pem"
key = "{folder}/outpost/key.pem"
ca = "{folder}/outpost/ca.pem"
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="dr-live-"))
    yield made
    shutil.rmtree(made)


def drengine(folder: Path, *argv: str) -> None:
    given = [sys.executable, "-m", "drengine.cli.main", *argv]
    subprocess.run(given, cwd=folder, check=True, capture_output=True, env=ENVIRONMENT)


def replicate(folder: Path, disk: Path) -> str:
    """A store with one point that shows the disk, granted to the live system's agent; the point's id."""
    with Store.create(folder / "store") as store, disk.open("rb") as file:
        store.ensure_source("guest")
        writer = store.writer("guest", generation=1)
        writer.append_geometry(1, Mark(), (VolumeGeometry(1, "root", "file:1", DISK_BYTES),), generation=1)
        sequence = 1
        for offset in range(0, DISK_BYTES, PIECE):
            data = file.read(PIECE)
            if data.strip(b"\0"):
                sequence += 1
                writer.append_batch(sequence, Mark(), data_batch([(offset, data)]), generation=1)
        cut = Cut(time.time_ns(), PointKind.QUIET, "whole")
        writer.append_cut(sequence + 1, Mark(), cut, generation=1)
        writer.commit(generation=1)
        writer.close()
        store.grants.give("guest", 1, Access.REVERSE, holder="agent/live")
        return store.points("guest")[-1].id


@contextlib.contextmanager
def target(folder: Path) -> Iterator[int]:
    port = free_port()
    drengine(folder, "ca", "init", "--ca", "ca", "--site", "main")
    drengine(folder, "ca", "issue", "target/outpost", "--host", HOST, "--ca", "ca", "--to", "outpost")
    drengine(folder, "ca", "issue", "agent/live", "--ca", "ca", "--to", "live")
    (folder / "target.toml").write_text(TARGET.format(folder=folder, port=port))
    with (folder / "target.log").open("wb") as log:
        argv = [sys.executable, "-m", "drengine.cli.main", "target", "run", "--config", "target.toml"]
        running = subprocess.Popen(argv, cwd=folder, stdout=log, stderr=log, env=ENVIRONMENT)
    try:
        yield port
    finally:
        running.terminate()
        running.wait()


def booted(command: list[str], console: Path, *, until: str = "", seconds: float = 240) -> str:
    """What its console says until it boots anew, or says this."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as machine:
        deadline = time.monotonic() + seconds
        said = ""
        while machine.poll() is None and not (until and re.search(until, said)):
            assert time.monotonic() < deadline, said[-3000:]
            time.sleep(0.2)
            said = console.read_text(errors="replace") if console.exists() else ""
        machine.kill()
    return console.read_text(errors="replace")


def test_an_empty_disk_is_filled_from_a_live_system_and_boots(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make the guest's disk")
    if missing := missing_for_guest() or missing_for_live():
        pytest.skip(f"not installed: {missing}")
    original, empty = folder / "original.img", folder / "empty.img"
    make_guest_disk(original, folder)
    with original.open("rb") as file, target(folder) as port:
        point = replicate(folder, original)
        with empty.open("wb") as disk:
            disk.truncate(DISK_BYTES + (8 << 20))
        agent = build_here(folder / "drengine-agent")
        words = f"restore {point} --source guest --target {HOST}:{port} --volume root=/dev/vda --yes --json"
        words += f" --identity /identity --data-network {NETWORK}"
        command = f"HOME=/root TMPDIR=/tmp {PYTHON} -IS /drengine-agent {words}"
        (folder / "ram").mkdir()
        make_live(folder / "live.img", folder / "ram/root", agent, folder / "live", command)
        console = booted(boot_live(empty, folder / "live.log", folder / "live.img"), folder / "live.log")
        assert "LIVE: the disk has 0 partitions" in console, console[-3000:]
        assert "LIVE: it ended with 0, and the disk has 1 partitions" in console, console[-3000:]
        told = json.loads(next(line for line in console.splitlines() if line.startswith("{")))
        assert (told["bytes_total"], told["reboot_shows_partitions"]) == (DISK_BYTES, [])
        with empty.open("rb") as disk:
            while piece := file.read(1 << 20):
                assert disk.read(len(piece)) == piece
    said = booted(boot(empty, folder / "disk.log"), folder / "disk.log", until=r"MARKER 3")
    assert "FOUND nothing" in said
    assert "MARKER 3" in said
