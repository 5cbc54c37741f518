"""`drengine inventory`: what a source's server is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec
import typer

from drengine.cli.common import JsonOption, StoreOption, open_store, pick_source
from drengine.model.inventory import FileSystem, Inventory, Listener, SourceDisk
from drengine.terminal import emit_json, human_bytes, human_time, note, show_table

app = typer.Typer(add_completion=False)

_NOT_REPLICATED = "yellow"
_BOOTS = {"uefi": "UEFI", "bios": "BIOS"}


@app.command()
def inventory(
    store: StoreOption,
    source: Annotated[
        str | None, typer.Argument(help="Source server; not needed when the store holds only one.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show what a source's server is made of, as its agent told last; also when the server is gone."""
    with open_store(store, read_only=True) as opened:
        name = pick_source(opened, source, hint="Name one: `drengine inventory SOURCE`.")
        found = opened.require_inventory(name)
    if json:
        emit_json(msgspec.to_builtins(found))
        return
    _show(name, found)


def _show(name: str, found: Inventory) -> None:
    show_table(("server", name), list(_server(found)))
    for title, heads, rows, styles in _tables(found):
        if rows:
            columns = (column for column in zip(heads, *rows, strict=True) if any(column[1:]))
            shown_heads, *shown_rows = zip(*columns, strict=True)
            print()
            show_table(shown_heads, shown_rows, title=title, styles=styles)
    for each in found.file_systems:
        if each.mounted_at and each.unreplicated:
            note(f"{each.mounted_at} lies on {', '.join(each.unreplicated)}, which is not replicated")
    note(f"as its agent found it at {human_time(found.taken_ns)}, by the source's clock")


def _server(found: Inventory) -> Iterator[tuple[str, str]]:
    boots = _BOOTS.get(found.boot_mode, "")
    facts = {
        "host name": found.hostname,
        "system": found.os_name or found.os_id,
        "kernel": " ".join(filter(None, (found.kernel, found.architecture))),
        "machine": found.machine,
        "virtualization": found.virtualization,
        "boots by": f"{boots} with secure boot" if found.secure_boot else boots,
        "CPUs": str(found.cpus or ""),
        "memory": human_bytes(found.memory_bytes) if found.memory_bytes else "",
        "root": " on ".join(found.root_chain) + (" (encrypted)" if found.encrypted_root else ""),
        "name servers": ", ".join(found.name_servers),
        "search": ", ".join(found.search),
    }
    yield from ((name, value) for name, value in facts.items() if value)


_Table = tuple[str, Sequence[str], Sequence[Sequence[str]], Sequence[str]]


def _tables(found: Inventory) -> Iterator[_Table]:
    """Title, headings, rows, and how each row's first cell is coloured."""
    disks = [_disk(each) for each in found.disks]
    yield (
        "Disks",
        ("disk", "size", "volume", "table", "bus", "model", "partitions"),
        disks,
        ["" if each.volume else _NOT_REPLICATED for each in found.disks],
    )
    yield (
        "File systems",
        ("device", "kind", "mounted at", "size", "free", "disks", "label", "UUID"),
        [_file_system(each) for each in found.file_systems],
        [_NOT_REPLICATED if each.unreplicated else "" for each in found.file_systems],
    )
    fstab = [(each.device, each.at, each.kind, each.options) for each in found.fstab]
    yield "fstab", ("device", "mounted at", "kind", "options"), fstab, []
    yield (
        "Network",
        ("interface", "kind", "addresses", "MAC", "MTU", "DHCP", "driver"),
        [
            (
                each.name,
                each.kind if each.is_up else f"{each.kind}, down",
                ", ".join(each.addresses),
                each.mac,
                str(each.mtu),
                "yes" if each.dhcp else "",
                each.driver,
            )
            for each in found.interfaces
        ],
        ["" if each.is_up else "dim" for each in found.interfaces],
    )
    routes = [(each.to, each.via, each.interface, str(each.metric or "")) for each in found.routes]
    yield "Routes", ("to", "via", "interface", "metric"), routes, []
    yield (
        "Services that listen",
        ("port", "address", "program", "unit"),
        [_listener(each) for each in found.listeners],
        [],
    )


def _disk(disk: SourceDisk) -> tuple[str, ...]:
    partitions = (f"{each.number}: {human_bytes(each.size_bytes)}" for each in disk.partitions)
    volume = disk.volume or "not replicated"
    model = disk.model
    return disk.device, human_bytes(disk.size_bytes), volume, disk.table, disk.transport, model, ", ".join(partitions)


def _file_system(system: FileSystem) -> tuple[str, ...]:
    return (
        system.device,
        system.kind,
        system.mounted_at,
        human_bytes(system.size_bytes) if system.size_bytes else "",
        human_bytes(system.free_bytes) if system.size_bytes else "",
        ", ".join(system.disks),
        system.label,
        system.uuid,
    )


def _listener(listener: Listener) -> tuple[str, ...]:
    return f"{listener.port}/{listener.protocol}", listener.address, listener.program, listener.unit
