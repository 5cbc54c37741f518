"""What drivers that start workloads on this host share about hydration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from drengine.failover.drivers.driver import LaunchRequest
from drengine.failover.drivers.move import MOVES, read_moves
from drengine.nbd.hydrators import end_hydrators, hydration_progress, start_hydrators

_HYDRATION = "hydration"


def hydrated(request: LaunchRequest) -> LaunchRequest:
    """The request with disks that go through hydrators, started now unless they run; as it is if nobody wants them.

    Raises:
        DrengineError: HYDRATION_FAILED.
    """
    if not request.hydrate:
        return request
    uris = start_hydrators(
        request.instance, hydration_place(request.directory), {disk.volume: disk.uri for disk in request.disks}
    )
    return replace(request, disks=tuple(replace(disk, uri=uris[disk.volume]) for disk in request.disks))


def end_hydrated(request: LaunchRequest) -> None:
    """After the workload has ended. Looked for in any case: who ends it may not know how it was launched."""
    end_hydrators(request.instance, hydration_place(request.directory))


def hydration_details(request: LaunchRequest) -> dict[str, Any]:
    """How far it is, for an instance's details."""
    return {"hydrated": {}, **current_hydration(request.directory)} if request.hydrate else {}


def current_hydration(directory: Path) -> dict[str, Any]:
    """How far the disks of an instance of this host are now, as its details tell it; empty when none is on its way."""
    volumes = sorted(report.stem for report in (directory / _HYDRATION).glob("*.json"))
    now = hydration_progress(directory / _HYDRATION, volumes) if volumes else {}
    moves = read_moves(directory / MOVES)
    return now | ({"moves": msgspec.to_builtins(moves)} if moves else {})


def hydration_place(directory: Path) -> Path:
    """Where the hydrators' files lie, in an instance's directory."""
    return directory / _HYDRATION
