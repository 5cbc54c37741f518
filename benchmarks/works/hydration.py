"""A recovered disk becomes local: how long that takes beside plain copies, how it reads meanwhile and afterwards."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import fio
from benchmarks.bench import Bench
from benchmarks.peers import qemu_nbd, run, serving, uri
from benchmarks.results import Contestant, Measured, Table, clocked, contest
from benchmarks.site import Target, environment, wait_for
from benchmarks.works.export_io import SOURCE, replicate_image

HYDRATE, EXPORT, QEMU, CP = "drengine hydrate", "nbdcopy from drengine's export", "nbdcopy from qemu-nbd", "cp"
MEANWHILE, AFTER, REMOTE, LOCAL = (
    "drengine hydrate, while it fills: blocks that are there",
    "drengine hydrate, complete",
    "drengine's export, not hydrated",
    "qemu-nbd, raw file",
)
HELD_SHARE = 0.25
"""Reads begin when so much is local, and stay in the first half of it."""


@dataclass(frozen=True)
class _Hydration:
    """A running `drengine hydrate`."""

    process: subprocess.Popen[bytes]
    socket: Path
    report: Path

    def share(self) -> float:
        """How much is local."""
        try:
            told: dict[str, Any] = json.loads(self.report.read_text())
        except (OSError, ValueError):
            return 0.0
        return float(told["hydrated_bytes"]) / float(told["size_bytes"])

    def reach(self, share: float) -> None:
        """Wait until so much is local."""
        wait_for("hydration", lambda: self.share() >= share or self.process.poll() is not None, seconds=300)
        if self.process.poll() is not None:
            raise RuntimeError(f"drengine hydrate ended with {self.process.returncode}")


def measure(bench: Bench) -> list[Table]:
    """The copy, and reads of it."""
    folder = bench.fresh("hydration")
    with bench.site(folder) as here:
        target = replicate_image(here, bench.image)
        return [_filling(bench, folder, target), *(_reading(bench, folder, target, depth) for depth in (1, 16))]


def _filling(bench: Bench, folder: Path, target: Target) -> Table:
    copy, socket = folder / "copy.img", folder / "raw.sock"

    def checked(measured: Measured) -> Measured:
        run("cmp", bench.image, copy)
        copy.unlink()
        return measured

    def hydrated() -> Measured:
        with _hydrating(target, folder) as hydration:
            measured = clocked(lambda: hydration.reach(1.0))
        return checked(measured)

    def copied(address: str) -> Measured:
        return checked(clocked(lambda: _ignore(run("nbdcopy", address, copy))))

    def from_qemu() -> Measured:
        with serving(socket, *qemu_nbd(socket, bench.image, "-r")):
            return copied(uri(socket))

    figures = contest(
        [
            Contestant(HYDRATE, hydrated, ours=True),
            Contestant(EXPORT, lambda: copied(_address(target)), ours=True),
            Contestant(QEMU, from_qemu),
            Contestant(CP, lambda: checked(clocked(lambda: _ignore(run("cp", "--sparse=never", bench.image, copy))))),
        ],
        bench.rounds,
    )
    return Table(
        "hydration",
        f"Hydration of {bench.image_bytes >> 20} MiB to a raw file",
        "s",
        figures,
        baseline=QEMU,
        remark="Ours from the moment at which the disk is served until all of it is local; whole commands otherwise. "
        "None is synced; all results were compared with the image.",
    )


def _reading(bench: Bench, folder: Path, target: Target, depth: int) -> Table:
    socket, seconds = folder / "raw.sock", 1
    held = int(bench.image_bytes * HELD_SHARE / 2)

    def reads(address: str, note: str = "") -> Measured:
        done = fio.load(address, held, depth, *fio.READS, seconds=seconds)
        return Measured(done.rate, None, f"{done}{note}")

    def meanwhile() -> Measured:
        with _hydrating(target, folder) as hydration:
            hydration.reach(HELD_SHARE)
            begun = hydration.share()
            measured = reads(uri(hydration.socket))
            note = f"{measured.note}; {begun:.0%} local when it began, {hydration.share():.0%} when it ended"
        if begun == 1.0 and not bench.quick:
            raise RuntimeError("hydration was complete before the reads began")
        return Measured(measured.value, None, note)

    def afterwards() -> Measured:
        with _hydrating(target, folder) as hydration:
            hydration.reach(1.0)
            return reads(uri(hydration.socket))

    def local() -> Measured:
        with serving(socket, *qemu_nbd(socket, bench.image, "-r")):
            return reads(uri(socket))

    figures = contest(
        [
            Contestant(MEANWHILE, meanwhile, ours=True),
            Contestant(AFTER, afterwards, ours=True),
            Contestant(REMOTE, lambda: reads(_address(target)), ours=True),
            Contestant(LOCAL, local),
        ],
        bench.rounds,
    )
    return Table(
        f"hydration_reads_depth_{depth}",
        f"4 KiB random reads of a disk that is being hydrated, depth {depth}",
        "operations/s",
        figures,
        higher_is_better=True,
        baseline=LOCAL,
        remark="While it fills, filling takes its share of the CPUs; the peer has them for itself.",
    )


def _address(target: Target) -> str:
    return uri(target.nbd, f"{SOURCE}/disk@latest")


@contextlib.contextmanager
def _hydrating(target: Target, folder: Path) -> Iterator[_Hydration]:
    """A hydration whose disk is being served."""
    copy, socket, report = folder / "copy.img", folder / "hydrated.sock", folder / "report.json"
    for path in (copy, socket, report):
        path.unlink(missing_ok=True)
    words = ("hydrate", _address(target), "--to", copy, "--socket", socket, "--report", report, "--json")
    line = [sys.executable, "-m", "drengine.cli.main", *map(str, words)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment()) as process:
        assert process.stdout
        try:
            if not process.stdout.readline():
                raise RuntimeError(f"drengine hydrate ended with {process.wait()}")
            yield _Hydration(process, socket, report)
        finally:
            process.send_signal(signal.SIGTERM)


def _ignore(_: str) -> None:
    """What a copy says isn't needed."""
