"""Real processes: the mirror is killed again and again, then the host of the original is lost, and the copy serves."""

from __future__ import annotations

import json
import random
import re
import shutil
import string
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from drengine.store.store import Store
from tests.crash.stamps import OPTIONS, SOURCE, check

SEED, KILLS = 7, 8
EXPORT_SECONDS = 10.0
DRENGINE = (sys.executable, "-m", "drengine.cli.main")


class Writer:
    """A process that writes to the original, and when it had acknowledged what."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-m", "tests.crash.stamps", str(path), str(SEED)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.acknowledged: list[tuple[int, int]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.acknowledged.append((time.time_ns(), int(line)))

    def until(self, count: int) -> None:
        """So many commits more have been acknowledged."""
        wanted = len(self.acknowledged) + count
        while len(self.acknowledged) < wanted:
            assert self.process.poll() is None
            time.sleep(0.01)

    def kill(self) -> None:
        self.process.kill()
        self._reader.join()
        self.process.wait()


@contextmanager
def mirroring(origin: Path, copy: Path) -> Iterator[subprocess.Popen[str]]:
    """`drengine mirror --follow`, and a kill -9 in the end."""
    command = [*DRENGINE, "mirror", str(origin), str(copy), "--follow", "--interval", "50ms", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_what_the_unit_starts_mirrors_and_ends_when_it_is_told_to(tmp_path: Path) -> None:
    unit = (Path(__file__).parents[3] / "deploy/systemd/drengine-mirror.service").read_text(encoding="utf-8")
    (line,) = re.findall(r"^ExecStart=/usr/bin/drengine (.*)$", unit, re.MULTILINE)
    copy = tmp_path / "copy"
    # As systemd does it: what is in braces is one word, and what is not may be several.
    values = {"ORIGIN": str(tmp_path / "origin"), "COPY": str(copy), "OPTIONS": "--interval 50ms --json --hashes"}
    words = string.Template(line).substitute(values).split()
    Store.create(tmp_path / "origin").close()
    with subprocess.Popen([*DRENGINE, *words], stdout=subprocess.PIPE, text=True) as process:
        try:
            writer = Writer(tmp_path / "origin")
            try:
                writer.until(3)
            finally:
                writer.kill()
            assert process.stdout
            assert json.loads(process.stdout.readline())["damaged"] == []
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()
    with Store.open(copy, read_only=True) as store:
        assert store.copy_of and store.sources()


@pytest.mark.timeout(300)
@pytest.mark.fault(1)
def test_the_only_targets_host_is_lost_and_the_copy_serves_within_ten_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = random.Random(SEED)
    origin, copy = tmp_path / "origin", tmp_path / "copy"
    writer = Writer(origin)
    try:
        writer.until(5)
        for _ in range(KILLS):
            with mirroring(origin, copy) as process:
                assert process.stdout
                for _ in range(chosen.choice((0, 1, 3))):
                    json.loads(process.stdout.readline())
                writer.until(chosen.choice((1, 5, 15)))
        with mirroring(origin, copy) as process:
            assert process.stdout
            for _ in range(3):
                assert json.loads(process.stdout.readline())["complete"]
            writer.until(10)
            process.stdout.readline()
    finally:
        writer.kill()
    lost_ns = time.time_ns()
    shutil.rmtree(origin)
    with Store.open(copy, options=OPTIONS, read_only=True) as store:
        as_of_ns = store.context.catalogue.mirrored()[SOURCE].as_of_ns
        promised = max(sequence for moment, sequence in writer.acknowledged if moment <= as_of_ns)
        reached = check(store, SEED, promised)
    began = time.monotonic()
    command = [*DRENGINE, "export", "--store", str(copy), "latest", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout
        told = json.loads(serving.stdout.readline())
        seconds = time.monotonic() - began
        serving.terminate()
    assert told["uris"] and told["source"] == SOURCE
    assert seconds < EXPORT_SECONDS
    with capsys.disabled():
        print(
            f" [seed {SEED}: {KILLS} kills, {promised} positions promised, {reached} there, lag stated"
            f" {(lost_ns - as_of_ns) / 1e9:.2f} s, served after {seconds:.1f} s]",
            end="",
        )
