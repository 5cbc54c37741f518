"""Hydrators of an instance: one process for each disk, serving it to a workload while it becomes local.

They outlive the process that started them, and are found again by their mark (see drengine.process.marked).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from drengine.model.errors import DrengineError
from drengine.nbd.errors import HYDRATION_FAILED
from drengine.nbd.hydrator import read_progress
from drengine.ownership import make_directory
from drengine.process import end_marked, find_marked, start_marked

MARK = "DRENGINE_HYDRATOR"
DISK_MARK = "DRENGINE_HYDRATOR_DISK"
READY = "serving"
READY_SECONDS = 10.0
GRACE_SECONDS = 15.0
LOOK_SECONDS = 0.02
OUTPUT_CHARACTERS_MAX = 2000


def start_hydrators(instance: str, directory: Path, disks: Mapping[str, str], *, copied: bool = True) -> dict[str, str]:
    """Serve disks (URIs by volume) locally while they fill; one that runs already is left alone. Returns new URIs.

    Not `copied`: they are only passed on, from TLS to a unix socket of this host.

    Raises:
        DrengineError: HYDRATION_FAILED.
    """
    make_directory(directory)
    directory = directory.absolute()  # their own working directory is another
    return {volume: _start(instance, directory, volume, uri, copied=copied) for volume, uri in disks.items()}


def end_hydrators(instance: str, directory: Path) -> None:
    """End them, after the workload: what it wrote is flushed first."""
    end_marked(MARK, instance, directory, grace_seconds=GRACE_SECONDS)


def hydration_progress(directory: Path, volumes: Iterable[str]) -> dict[str, dict[str, Any]]:
    """For details: `hydrated`, how much of each disk is local, 0 to 1, as far as it is known; and `given_up`, why
    copies are kept no more, if there are such.
    """
    read = {volume: read_progress(hydrator_files(directory, volume).report) for volume in volumes}
    known = {volume: now for volume, now in read.items() if now and now.size_bytes}
    told: dict[str, dict[str, Any]] = {
        "hydrated": {volume: round(now.hydrated_bytes / now.size_bytes, 4) for volume, now in known.items()}
    }
    if given_up := {volume: now.given_up for volume, now in known.items() if now.given_up}:
        told["given_up"] = given_up
    return told


class HydratorFiles(NamedTuple):
    """Where one hydrator's files lie: its local copy, its socket, its report of progress, and what it says."""

    copy: Path
    socket: Path
    report: Path
    output: Path


def hydrator_files(directory: Path, volume: str) -> HydratorFiles:
    """Of a volume's hydrator in an instance's directory."""
    return HydratorFiles(*(directory / f"{volume}.{ending}" for ending in ("img", "sock", "json", "log")))


def hydrator_processes(instance: str, directory: Path) -> list[int]:
    """Of an instance."""
    return find_marked(MARK, instance, directory)


def is_hydrating(instance: str, directory: Path, volume: str) -> bool:
    """Whether a volume's hydrator runs."""
    return bool(find_marked(DISK_MARK, f"{instance}/{volume}", directory))


def _start(instance: str, directory: Path, volume: str, uri: str, *, copied: bool) -> str:
    files = hydrator_files(directory, volume)
    if not is_hydrating(instance, directory, volume):
        files.output.write_bytes(b"")
        for old in (files.copy, files.report):  # a copy that somebody still has open stays as it is for him
            old.unlink(missing_ok=True)
        places = (files.copy if copied else "", files.socket, files.report)
        start_marked(
            [sys.executable, "-m", "drengine.nbd.hydrator", uri, *map(str, places)],
            DISK_MARK,
            f"{instance}/{volume}",
            output=files.output,
            directory=directory,
            environment={MARK: instance, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    deadline = time.monotonic() + READY_SECONDS
    while READY.encode() not in files.output.read_bytes():
        if time.monotonic() > deadline or not is_hydrating(instance, directory, volume):
            said = files.output.read_text(errors="replace")[-OUTPUT_CHARACTERS_MAX:].strip()
            raise DrengineError(HYDRATION_FAILED, f"disk {volume} can't be hydrated: {said}")
        time.sleep(LOOK_SECONDS)
    return f"nbd+unix:///?socket={quote(str(files.socket))}"
