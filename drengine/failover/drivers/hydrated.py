"""What drivers that start workloads on this host share about hydration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from drengine.failover.drivers.driver import LaunchRequest
from drengine.nbd.hydrators import end_hydrators, hydration_progress, start_hydrators


def hydrated(request: LaunchRequest) -> LaunchRequest:
    """The request with disks that go through hydrators, started now unless they run; as it is if nobody wants them.

    Raises:
        DrengineError: HYDRATION_FAILED.
    """
    if not request.hydrate:
        return request
    uris = start_hydrators(
        request.instance, hydration_place(request), {disk.volume: disk.uri for disk in request.disks}
    )
    return replace(request, disks=tuple(replace(disk, uri=uris[disk.volume]) for disk in request.disks))


def end_hydrated(request: LaunchRequest) -> None:
    """After the workload has ended. Looked for in any case: who ends it may not know how it was launched."""
    end_hydrators(request.instance)


def hydration_details(request: LaunchRequest) -> dict[str, Any]:
    """How far it is, for an instance's details."""
    volumes = [disk.volume for disk in request.disks]
    return {"hydrated": hydration_progress(hydration_place(request), volumes)} if request.hydrate else {}


def hydration_place(request: LaunchRequest) -> Path:
    """Where the hydrators' files lie."""
    return request.directory / "hydration"
