"""`drengine convert`: make the disks of a branch boot on another machine, or say what that would change."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

import msgspec
import typer

from drengine.audit import recorded
from drengine.cli.common import JsonOption, StoreOption, open_store, pick_point, pick_source
from drengine.config import BAD_CONFIG, parse_duration
from drengine.conversion.convert import convert as make_fit
from drengine.conversion.helper import HelperDisk, HelperOptions
from drengine.conversion.judge import speaks_of
from drengine.conversion.values import Converted, Wish
from drengine.failover.addresses import cards
from drengine.failover.drivers.available import load_driver
from drengine.failover.drivers.driver import KnowsMachine
from drengine.failover.drivers.qemu.accelerator import choose_accelerator
from drengine.failover.drivers.qemu.settings import QemuSettings
from drengine.failover.reading.reader import read_runbook, read_runbook_text
from drengine.failover.runbook.values import Mode
from drengine.failover.steps.workloads import looked_at
from drengine.model.errors import DrengineError
from drengine.model.hardware import Machine
from drengine.nbd.server import NbdServer
from drengine.process.threads import in_cancellable_thread
from drengine.store.errors import UNKNOWN_BRANCH, UNKNOWN_SOURCE
from drengine.store.store import Store
from drengine.target.exports import StoreExports
from drengine.terminal import emit_json, note, show_table

app = typer.Typer(add_completion=False)

LABEL = "convert"
GRACE_SECONDS = 5.0
THREADS = 4
CELL_CHARACTERS_MAX = 60


DiskBus = Literal["virtio", "nvme", "scsi", "sata", "xen"]
Firmware = Literal["bios", "uefi"]


@app.command()
def convert(
    store: StoreOption,
    source: Annotated[str | None, typer.Argument(help="Source server; not needed when there is only one.")] = None,
    point: Annotated[
        str, typer.Option("--point", help="With --dry-run: a point's id, `latest`, `before:TIME`, or its label.")
    ] = "latest",
    branch: Annotated[int | None, typer.Option("--branch", min=2, help="Convert this branch.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be changed, on a branch that is thrown away.")
    ] = False,
    runbook: Annotated[
        Path | None, typer.Option("--runbook", help="Machine and addresses are those of a failover by this runbook.")
    ] = None,
    disk_bus: Annotated[DiskBus, typer.Option("--disk-bus", help="What the machine's disks hang on.")] = "virtio",
    firmware: Annotated[
        Firmware | None, typer.Option("--firmware", help="How the machine boots; default: as the source.")
    ] = None,
    timeout: Annotated[str, typer.Option("--timeout", help="How long it may take.")] = "30m",
    json: JsonOption = False,
) -> None:
    """Make the disks of a branch boot on another machine: drivers, names, boot loader, serial console, network.

    The guest's own programs do it, in a helper machine without a network. A point is never changed: name a branch
    (`drengine branches`), or have --dry-run tell what would be changed.
    """
    seconds = _seconds(timeout)
    with open_store(store) as opened:
        name = pick_source(opened, source)
        wish = _wish(opened, name, runbook, disk_bus, firmware, dry=dry_run)
        with (
            _chosen(opened, name, point, branch, dry=dry_run) as number,
            recorded(store, "branch.convert", f"{name}#{number}", dry=dry_run),
        ):
            made = asyncio.run(_served(opened, name, number, wish, seconds))
    if json:
        emit_json({"source": name, "branch": number, "dry_run": dry_run, **msgspec.to_builtins(made)})
    else:
        _show(name, made, dry=dry_run)


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise DrengineError(BAD_CONFIG, f"--timeout: {error}", hint="Write for example 30m.") from error


def _wish(
    store: Store, source: str, runbook: Path | None, bus: DiskBus, firmware: Firmware | None, *, dry: bool
) -> Wish:
    """What the disks are to be made fit for.

    Raises:
        DrengineError: BAD_RUNBOOK, UNKNOWN_RUNBOOK, UNKNOWN_SOURCE, LAUNCH_SETTINGS.
    """
    inventory = store.inventory(source)
    with store.head_view(source) as head:
        if not speaks_of(inventory, {each.name for each in head.geometry.values()}):
            inventory = None
    if runbook is None:
        known = inventory or looked_at(store, source)
        mode = firmware or (known.boot_mode if known else "") or "bios"
        return Wish(machine=Machine(disk_bus=bus, firmware=mode), inventory=inventory, dry=dry)
    book = read_runbook(read_runbook_text(runbook), where=str(runbook))
    if source not in book.sources:
        raise DrengineError(UNKNOWN_SOURCE, f"{runbook} has no source {source!r}")
    launch = book.sources[source].launch
    driver = load_driver(launch.driver)
    known = inventory or looked_at(store, source)
    machine = driver.machine(launch.settings, known) if isinstance(driver, KnowsMachine) else Machine()
    found = cards(book, source, inventory, Mode.FAILOVER, instance=f"{LABEL}-{source}")
    return Wish(machine=machine, inventory=inventory, cards=found, first_boot=launch.conversion.first_boot, dry=dry)


@contextmanager
def _chosen(store: Store, source: str, point: str, branch: int | None, *, dry: bool) -> Iterator[int]:
    """The branch that is converted; of a dry run it is closed at the end, whatever happens.

    Raises:
        DrengineError: UNKNOWN_BRANCH, BAD_POINT, UNKNOWN_POINT.
    """
    if dry:
        made = store.create_branch(pick_point(store, source, point), role="drill", label=LABEL)
        try:
            yield made.number
        finally:
            store.close_branch(source, made.number)
        return
    found = next((each for each in store.branches(source) if each.number == branch and not each.closed), None)
    if found is None:
        fault = "no branch is named" if branch is None else f"{source!r} has no open branch {branch}"
        hint = "`drengine branches` lists them, `drengine export POINT --writable` makes one; or give --dry-run."
        raise DrengineError(UNKNOWN_BRANCH, fault, hint=hint)
    yield found.number


async def _served(store: Store, source: str, branch: int, wish: Wish, seconds: float) -> Converted:
    """Convert over NBD on a unix socket of this process's own."""
    with (
        store.head_view(source, branch) as head,
        ThreadPoolExecutor(THREADS, thread_name_prefix="convert") as pool,
        tempfile.TemporaryDirectory(prefix="drengine-convert-") as made,
    ):
        volumes = sorted(head.geometry.values(), key=lambda each: each.volume)
        names = {each.name: f"{source}/{each.name}#{branch}" for each in volumes}
        exports = StoreExports(store, pool, only=tuple(names.values()))
        server = NbdServer(exports)
        try:
            place = await server.start_unix(Path(made) / "nbd.sock")
            disks = [
                HelperDisk(
                    each.name,
                    f"nbd+unix:///{quote(names[each.name])}?socket={quote(str(place))}",
                    head.sector_bytes(each.volume),
                )
                for each in volumes
            ]
            (Path(made) / "probe").mkdir()
            accelerator = choose_accelerator(QemuSettings(), Path(made) / "probe").name

            def work(cancelled: threading.Event) -> Converted:
                return make_fit(
                    Path(made) / "helper",
                    f"{LABEL}-{source}-{branch}",
                    disks,
                    wish,
                    HelperOptions(accelerator=accelerator),
                    timeout_seconds=seconds,
                    progress=note,
                    cancelled=cancelled,
                )

            return await in_cancellable_thread(work)
        finally:
            await server.close(GRACE_SECONDS)
            await exports.close()


def _show(source: str, made: Converted, *, dry: bool) -> None:
    print(f"{source}: {made.system}, root on {made.root}, kernels {', '.join(made.kernels)}")
    if made.changes:
        rows = [(each.what, each.path, _cell(each.before), _cell(each.after)) for each in made.changes]
        show_table(("what", "path", "before", "after"), rows, title="would be changed" if dry else "changed")
    else:
        print("nothing to change")
    for each in made.notes:
        note(each)


def _cell(text: str) -> str:
    """The lines as they differ, each short enough for a table."""
    return "\n".join(line[:CELL_CHARACTERS_MAX] for line in text.splitlines())
