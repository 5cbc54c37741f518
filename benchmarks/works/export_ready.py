"""How long until a point can be read, against the volume's size: history grows with the volume, readiness must not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.bench import GIB, Bench
from benchmarks.results import Contestant, Figure, Measured, Table, contest
from benchmarks.site import environment
from benchmarks.streams import SOURCE, VOLUME, write_stream
from drengine.model.points import PointSelector
from drengine.nbd.client import NbdClient
from drengine.store.store import Store

MAPPINGS_PER_GIB = 4096
EXTENT_BYTES = 4096
AIM_SECONDS = 0.3


def measure(bench: Bench) -> list[Table]:
    """A store opened, its point viewed and a block of it read; and the whole command in a new process."""
    sizes_gib = (1, 16, 64) if bench.quick else (1, 16, 128, 1024)
    opened: list[Figure] = []
    served: list[Figure] = []
    for gib in sizes_gib:
        store = bench.fresh("sparse") / "store"
        stride = GIB // MAPPINGS_PER_GIB
        offsets = np.arange(gib * MAPPINGS_PER_GIB, dtype=np.uint64) * np.uint64(stride)
        write_stream(store, gib * GIB, offsets, EXTENT_BYTES)
        title = f"{gib} GiB, {len(offsets):,} mappings"
        middle = gib * GIB // 2
        first = Contestant(f"{title}, first time", partial(_open, store, middle), ours=True)
        again = Contestant(title, partial(_open, store, middle), ours=True)
        command = Contestant(title, partial(_export, store, middle), ours=True)
        opened += [*contest([first], 1), *contest([again], bench.rounds)]
        served += contest([command], bench.rounds)
    return [
        Table(
            "export_ready",
            "Export ready: store opened, point found, a block in its middle read",
            "s",
            tuple(opened),
            aims={figure.name: AIM_SECONDS for figure in opened},
            baseline=opened[1].name,
            remark="`first time` also merges the layers that nobody has asked for yet; they are kept.",
        ),
        Table(
            "export_command",
            "`drengine export`, from the start of the process to the first block over NBD",
            "s",
            tuple(served),
            aims={figure.name: AIM_SECONDS for figure in served},
            baseline=served[0].name,
            remark="Most of it is Python starting and importing.",
        ),
    ]


def _open(path: Path, offset: int) -> Measured:
    begun = time.perf_counter()
    with Store.open(path) as store, store.view(store.find_point(SOURCE, PointSelector())) as view:
        data = view.read(VOLUME, offset, EXTENT_BYTES)
        seconds = time.perf_counter() - begun
    if not any(data):
        raise RuntimeError(f"nothing was read at {offset}")
    return Measured(seconds)


def _export(path: Path, offset: int) -> Measured:
    socket = path.parent / "export.sock"
    begun = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "drengine.cli.main",
        "export",
        "latest",
        "--store",
        str(path),
        "--socket",
        str(socket),
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout and process.stderr
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"drengine export failed: {process.stderr.read().decode()[-300:]}")
            text = line
            while text.count(b"{") > text.count(b"}"):
                text += process.stdout.readline()
            with NbdClient(str(socket), json.loads(text)["exports"][0]) as disk:
                data = disk.read(offset, EXTENT_BYTES)
            seconds = time.perf_counter() - begun
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGTERM)
    if not any(data):
        raise RuntimeError(f"nothing was read at {offset}")
    return Measured(seconds)
