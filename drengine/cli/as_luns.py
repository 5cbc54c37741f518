"""What `drengine export --iscsi` adds: the exports as LUNs, for as long as the command runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import typer

from drengine.iscsi.errors import ISCSI_SETTINGS
from drengine.iscsi.names import target_name
from drengine.iscsi.portals import Portal
from drengine.iscsi.serving import Account, IscsiInstance, IscsiTarget, LunDisk, ServedTarget
from drengine.model.errors import DrengineError
from drengine.model.points import VolumeGeometry
from drengine.model.sectors import SECTOR_BYTES
from drengine.process.given import given
from drengine.transport.networks import DataNetworks

IscsiOption = Annotated[
    str | None,
    typer.Option("--iscsi", metavar="ADDRESS[:PORT]", help="Serve them as LUNs too, at this portal of this host."),
]
InitiatorOption = Annotated[
    list[str] | None, typer.Option("--initiator", metavar="IQN", help="Only initiators of this name; may be repeated.")
]
ChapUserOption = Annotated[str, typer.Option("--chap-user", help="As whom initiators log in (CHAP).")]
ChapSecretOption = Annotated[
    Path | None, typer.Option("--chap-secret", metavar="FILE", help="File with the secret, of 12 characters or more.")
]
DataNetworkOption = Annotated[
    list[str] | None,
    typer.Option("--data-network", metavar="CIDR", help="Network from which initiators may come; may be repeated."),
]


def iscsi_target(
    portal: str, initiators: Sequence[str], user: str, secret: Path | None, networks: Sequence[str]
) -> IscsiTarget:
    """The options as a target, whose name is not known yet.

    Raises:
        DrengineError: ISCSI_SETTINGS, OUTSIDE_DATA_NETWORK.
    """
    if bool(user) != bool(secret):
        raise DrengineError(ISCSI_SETTINGS, "--chap-user and --chap-secret belong together")
    try:
        account = Account(user, given("file", str(secret.absolute()))) if secret else None
        target = IscsiTarget(
            name=target_name("source", drill=True),
            portal=Portal.parse(portal),
            networks=DataNetworks.parse(networks),
            initiators=tuple(initiators),
            account=account,
        )
    except ValueError as error:
        raise DrengineError(ISCSI_SETTINGS, f"--iscsi: {error}") from error
    target.check()
    return target


@asynccontextmanager
async def as_luns(
    target: IscsiTarget | None, volumes: Sequence[VolumeGeometry], uris: Sequence[str], directory: Path
) -> AsyncIterator[ServedTarget | None]:
    """Exports as LUNs until the block ends; nothing without a target. Their processes end with ours, whatever kills it.

    Raises:
        DrengineError: see IscsiInstance.start.
    """
    if target is None:
        yield None
        return
    disks = [
        LunDisk(each.name, uri, max(SECTOR_BYTES, each.sector_bytes)) for each, uri in zip(volumes, uris, strict=True)
    ]
    instance = IscsiInstance(f"export-{os.getpid()}", directory, [each.volume for each in disks], ends_with_us=True)
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, thread_name_prefix="iscsi") as thread:  # it lives as long as they do; NBD goes on
        try:
            yield await loop.run_in_executor(thread, instance.start, target, disks)
        finally:
            await loop.run_in_executor(thread, instance.stop)
