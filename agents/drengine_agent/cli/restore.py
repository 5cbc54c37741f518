"""`drengine-agent restore`: write a point onto this host's disks, from whatever system runs here."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer

from drengine.config.bandwidth import BandwidthSchedule
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.terminal import emit_json, human_bytes, is_agreed, is_terminal, note, progress_bar
from drengine_agent.bandwidth import TokenBucket
from drengine_agent.cli.common import JsonOption, named_volumes
from drengine_agent.config import parse_config
from drengine_agent.daemon.connector import Connector
from drengine_agent.errors import NOT_AGREED
from drengine_agent.failback.restore import Restored
from drengine_agent.failback.restore import restore as write_point
from drengine_agent.failback.reverse import ReverseReport
from drengine_agent.ship.compression import CompressionController, levels_of
from drengine_agent.ship.route import Route
from drengine_agent.ship.uplink import Uplink

app = typer.Typer(add_completion=False)


@app.command()
def restore(
    point: Annotated[str, typer.Argument(help="Its id, as `drengine points --source SOURCE` shows it: 1-57.")],
    source: Annotated[str, typer.Option(help="Whose point it is.")],
    target: Annotated[str, typer.Option(help="The target's HOST:PORT; of several targets of one store, with commas.")],
    volume: Annotated[list[str], typer.Option(help="NAME=DISK; once for each volume that is wanted.")],
    identity: Annotated[
        Path | None, typer.Option(help="Folder with certificate.pem, key.pem and ca.pem, as `enrol --to` makes it.")
    ] = None,
    data_network: Annotated[list[str] | None, typer.Option(help="Network that block data may use; repeatable.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before the disks are overwritten.")] = False,
    json: JsonOption = False,
) -> None:
    """Write a recovery point onto this host's disks, boot loader and all, from a live image or a rescue system.

    The store must have granted it to this host's agent: `drengine grant give POINT --access reverse --to agent/NAME`.
    Each extent is proved by its hash and read back. Broken off, the same command goes on. Nothing is installed here.
    """
    disks = named_volumes(volume)
    listed = ", ".join(f"{path} with {source}'s {name}" for name, path in disks.items())
    if not yes and not is_agreed(f"Overwrite {listed}?"):
        raise DrengineError(NOT_AGREED, f"nobody has agreed to overwrite {listed}")
    values: dict[str, Any] = {"source": source, "target": target, "data_networks": data_network or []}
    values["volume"] = [{"name": name, "path": str(path)} for name, path in disks.items()]
    if identity is not None:
        files = {each: str(identity / f"{each}.pem") for each in ("certificate", "key", "ca")}
        crl = identity / "crl.pem"
        values["tls"] = files | ({"crl": str(crl)} if crl.exists() else {})
    with progress_bar("restoring", quiet=json or not is_terminal()) as advance:

        def tell(report: ReverseReport) -> None:
            advance(report.bytes_compared, report.bytes_total)

        done = asyncio.run(_restore(values, point, disks, tell))
    _show(done, source, point, json)


async def _restore(values: dict[str, Any], point: str, disks: dict[str, Path], tell: Any) -> Restored:
    config, clock, random = parse_config(values), SystemClock(), Random()
    uplink = Uplink(
        config.source,
        Connector(config, clock, None),
        Route(config.target, random),
        clock,
        TokenBucket(BandwidthSchedule.parse("unlimited"), clock),
        CompressionController(levels_of(config.compression)),
        config.workers,
    )
    return await write_point(uplink, point, disks, tell)


def _show(done: Restored, source: str, point: str, json: bool) -> None:
    report = done.report
    if json:
        emit_json(
            {
                "source": source,
                "point": point,
                "disks": {name: str(path) for name, path in done.disks.items()},
                "bytes_total": report.bytes_total,
                "bytes_written": report.bytes_written,
                "bytes_shipped": report.bytes_shipped,
                "reboot_shows_partitions": [str(each) for each in done.unread],
            }
        )
        return
    wrote = f"{human_bytes(report.bytes_written)} written, {human_bytes(report.bytes_shipped)} shipped"
    print(f"point {point} of {source} is on {', '.join(map(str, done.disks.values()))}, proved by its hashes: {wrote}")
    for disk in done.unread:
        note(f"{disk} is in use, so its partitions show after the reboot")
    note(
        "take the live medium out and boot from the disk (`reboot -f`); docs/failback.md says what its agent does then"
    )
