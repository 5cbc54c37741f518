"""`drengine export`: serve a point, or a branch, over NBD at once, whatever its size."""

from __future__ import annotations

import asyncio
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from msgspec import to_builtins

from drengine.cli.as_luns import (
    ChapSecretOption,
    ChapUserOption,
    DataNetworkOption,
    InitiatorOption,
    IscsiOption,
    as_luns,
    iscsi_target,
)
from drengine.cli.common import JsonOption, SourceOption, StoreOption, open_store, pick_point, pick_source
from drengine.config import ADDRESS, BAD_CONFIG
from drengine.iscsi.names import target_name
from drengine.iscsi.serving import IscsiTarget
from drengine.model.errors import DrengineError
from drengine.model.points import VolumeGeometry
from drengine.model.sectors import SECTOR_BYTES
from drengine.nbd.export import Export, Peer
from drengine.nbd.server import NbdServer
from drengine.process.local import own_users
from drengine.process.signals import signalled
from drengine.store.errors import UNKNOWN_BRANCH, UNKNOWN_VOLUME
from drengine.store.log.branches import BranchInfo
from drengine.store.store import Store
from drengine.target.exports import StoreExports
from drengine.terminal import emit_json, human_bytes, note
from drengine.transport.errors import PLAIN_REFUSED
from drengine.transport.networks import is_loopback

app = typer.Typer(add_completion=False)

GRACE_SECONDS = 5.0
THREADS = 4


@app.command()
def export(
    store: StoreOption,
    point: Annotated[str, typer.Argument(help="A point's id, `latest`, `before:TIME`, or its label.")] = "latest",
    branch: Annotated[int | None, typer.Option("--branch", min=2, help="Serve this branch instead.")] = None,
    source: SourceOption = None,
    volume: Annotated[str | None, typer.Option("--volume", help="Only this volume.")] = None,
    socket: Annotated[Path | None, typer.Option("--socket", help="Unix socket; by default a new one.")] = None,
    listen: Annotated[str | None, typer.Option("--listen", help="HOST:PORT on loopback, instead.")] = None,
    writable: Annotated[
        bool,
        typer.Option("--writable", help="Make a drill's branch of the point and serve that for writing."),
    ] = False,
    iscsi: IscsiOption = None,
    initiator: InitiatorOption = None,
    chap_user: ChapUserOption = "",
    chap_secret: ChapSecretOption = None,
    data_network: DataNetworkOption = None,
    json: JsonOption = False,
) -> None:
    """Serve the volumes of a point over NBD until interrupted; read-only unless --writable or --branch.

    With --iscsi they are LUNs too, in their order, for machines that have no NBD or boot from a SAN. The replica, its
    other points and replication are not touched, whatever is written to a branch.
    """
    address = _address(listen) if listen else None
    target = iscsi_target(iscsi, initiator or [], chap_user, chap_secret, data_network or []) if iscsi else None
    with open_store(store, read_only=not writable and branch is None) as opened:
        name = pick_source(opened, source)
        told: dict[str, Any] = {"source": name}
        if branch is not None:
            chosen = _branch(opened, name, branch)
        elif writable:
            chosen = opened.create_branch(pick_point(opened, name, point), role="drill", label="export")
        else:
            chosen = None
        if chosen is None:
            found = pick_point(opened, name, point)
            volumes, mark = found.geometry, f"@{found.id}"
            told |= {"point": found.id, "time_ns": found.time_ns, "writable": False}
        else:
            with opened.head_view(name, chosen.number) as head:
                volumes, mark = tuple(head.geometry.values()), f"#{chosen.number}"
            told |= {"branch": chosen.number, "writable": True}
        volumes = _only(volumes, volume)
        exports = [f"{name}/{each.name}{mark}" for each in volumes]
        if target is not None:
            target = replace(target, name=target_name(name, drill=True), read_only=chosen is None)
        asyncio.run(_serve(opened, exports, volumes, socket, address, target, told, json))


async def _serve(
    store: Store,
    names: list[str],
    volumes: tuple[VolumeGeometry, ...],
    socket: Path | None,
    address: tuple[str, int] | None,
    target: IscsiTarget | None,
    told: dict[str, Any],
    json: bool,
) -> None:
    stopping = signalled()
    with (
        ThreadPoolExecutor(THREADS, thread_name_prefix="export") as pool,
        tempfile.TemporaryDirectory() as made,
    ):
        exports = StoreExports(store, pool, default=names[0] if len(names) == 1 else "", only=tuple(names))
        server = NbdServer(exports)
        try:
            if address:
                host, port = await server.start_tcp(*address, users=own_users())
                told["uris"] = [f"nbd://{host}:{port}/{quote(name)}" for name in names]
            else:
                place = await server.start_unix(socket or Path(made) / "nbd.sock")
                told["uris"] = [f"nbd+unix:///{quote(name)}?socket={quote(str(place))}" for name in names]
            held = await _hold(exports, names)
            async with as_luns(target, volumes, told["uris"], Path(made) / "iscsi") as served:
                if served is not None:
                    told["iscsi"] = to_builtins(served)
                _tell(told, names, volumes, held.info.sector_bytes, json)
                await stopping.wait()
            held.close()
        finally:
            await server.close(GRACE_SECONDS)
            await exports.close()


async def _hold(exports: StoreExports, names: list[str]) -> Export:
    """Open one export before anything is announced: what can't be served fails now, and retention sees the lease."""
    held = await exports.open(names[0], Peer("unix"))
    return held


def _tell(
    told: dict[str, Any], names: list[str], volumes: tuple[VolumeGeometry, ...], sector_bytes: int, json: bool
) -> None:
    """`sector_bytes` is what clients of the first volume are told."""
    if json:
        sizes = [
            {"name": each.name, "size_bytes": each.size_bytes, "sector_bytes": each.sector_bytes} for each in volumes
        ]
        emit_json({**told, "exports": names, "volumes": sizes, "pid": os.getpid()})
        return
    what = f"point {told['point']}, read-only" if "point" in told else f"branch {told['branch']}, writable"
    print(f"{told['source']}: {what}")
    for uri, each in zip(told["uris"], volumes, strict=True):
        print(f"  {each.name}  {human_bytes(each.size_bytes)}  {uri}")
    for name, lun in told.get("iscsi", {}).get("luns", {}).items():
        print(f"  {name}  LUN {lun} of {told['iscsi']['target']} at {told['iscsi']['portal']}")
    first = told["uris"][0]
    print(f"look at it:  nbdinfo '{first}'", f"copy it:     nbdcopy '{first}' disk.img", sep="\n")
    keep = " -snapshot" if "point" in told else ""
    if sector_bytes <= SECTOR_BYTES:
        print(f"boot it:     qemu-system-x86_64 -m 1024{keep} -drive file='{first}',format=raw", flush=True)
    else:
        note(f"the disk had sectors of {sector_bytes} bytes, and so must what reads its partition table")
        print(
            f"boot it:     qemu-system-x86_64 -m 1024{keep} -drive file='{first}',format=raw,if=none,id=disk "
            f"-device virtio-blk,drive=disk,logical_block_size={sector_bytes},physical_block_size={sector_bytes}",
            flush=True,
        )
    note("serving until Ctrl-C")


def _branch(store: Store, source: str, number: int) -> BranchInfo:
    found = next((each for each in store.branches(source) if each.number == number and not each.closed), None)
    if found is None:
        raise DrengineError(UNKNOWN_BRANCH, f"{source!r} has no open branch {number}")
    return found


def _only(volumes: tuple[VolumeGeometry, ...], name: str | None) -> tuple[VolumeGeometry, ...]:
    chosen = tuple(each for each in volumes if name is None or each.name == name)
    if not chosen:
        known = ", ".join(each.name for each in volumes)
        raise DrengineError(UNKNOWN_VOLUME, f"there is no volume {name!r} here; there are {known}")
    return chosen


def _address(text: str) -> tuple[str, int]:
    """A loopback address: this command has no TLS, so nothing leaves the machine.

    Raises:
        DrengineError: BAD_CONFIG, PLAIN_REFUSED.
    """
    try:
        address = ADDRESS.parse(text)
        if address.path:
            raise ValueError("use --socket for a unix socket")  # noqa: TRY301
        loopback = is_loopback(address.host)
    except ValueError as error:
        raise DrengineError(BAD_CONFIG, f"--listen: {error}", hint="Write for example 127.0.0.1:10809.") from error
    if not loopback:
        raise DrengineError(
            PLAIN_REFUSED,
            f"--listen {text} would serve block data in the clear beyond this machine",
            hint="Use 127.0.0.1, or configure `nbd_listen` with TLS on the target.",
        )
    return address.host, address.port
