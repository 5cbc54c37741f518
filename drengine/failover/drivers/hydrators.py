"""Hydrators of an instance: one process for each disk, serving it to the workload while it becomes local."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from drengine.failover.drivers.driver import Disk, LaunchRequest
from drengine.failover.steps.errors import LAUNCH_FAILED
from drengine.model.errors import DrengineError
from drengine.process import end_marked, find_marked, start_marked

MARK = "DRENGINE_HYDRATOR"
READY_SECONDS = 10.0
GRACE_SECONDS = 15.0
LOOK_SECONDS = 0.02
OUTPUT_CHARACTERS_MAX = 2000


def hydrated_disks(request: LaunchRequest) -> tuple[Disk, ...]:
    """The disks as the workload should open them: through hydrators, started now unless they run, if that is wanted.

    Raises:
        DrengineError: LAUNCH_FAILED.
    """
    if not request.hydrate:
        return request.disks
    return tuple(_hydrated(request, disk, number) for number, disk in enumerate(request.disks))


def end_hydrators(request: LaunchRequest) -> None:
    """End them, after the workload: what it wrote is flushed to the branch first."""
    end_marked(MARK, request.instance, grace_seconds=GRACE_SECONDS)


def hydration_progress(request: LaunchRequest) -> dict[str, float]:
    """How much of each disk is local, 0 to 1."""
    found = {}
    for number, disk in enumerate(request.disks):
        with contextlib.suppress(OSError, ValueError, KeyError, ZeroDivisionError):
            told = json.loads(_place(request, number, "json").read_text())
            found[disk.volume] = round(told["hydrated_bytes"] / told["size_bytes"], 4)
    return found


def _hydrated(request: LaunchRequest, disk: Disk, number: int) -> Disk:
    socket, output = _place(request, number, "sock"), _place(request, number, "log")
    mark = f"{request.instance}/{number}"
    if not find_marked(f"{MARK}_DISK", mark):
        request.directory.mkdir(parents=True, exist_ok=True)
        program = [sys.executable, "-m", "drengine.cli.main", "hydrate", disk.uri, "--json"]
        places = {"--to": "img", "--socket": "sock", "--report": "json"}
        start_marked(
            [
                *program,
                *(text for flag, suffix in places.items() for text in (flag, str(_place(request, number, suffix)))),
            ],
            f"{MARK}_DISK",
            mark,
            output=output,
            directory=request.directory,
            environment={MARK: request.instance, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    deadline = time.monotonic() + READY_SECONDS
    while b'"socket"' not in output.read_bytes():
        if time.monotonic() > deadline or not find_marked(f"{MARK}_DISK", mark):
            said = output.read_text(errors="replace")[-OUTPUT_CHARACTERS_MAX:]
            raise DrengineError(LAUNCH_FAILED, f"disk {disk.volume} can't be hydrated: {said}")
        time.sleep(LOOK_SECONDS)
    return replace(disk, uri=f"nbd+unix:///?socket={quote(str(socket))}")


def _place(request: LaunchRequest, number: int, suffix: str) -> Path:
    return request.directory / f"disk{number}.{suffix}"
