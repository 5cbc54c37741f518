"""`drengine source`: the sources that a store knows, what they use of their quotas, and taking one in beforehand."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from drengine.audit import recorded
from drengine.cli.chosen import target_file
from drengine.cli.common import JsonOption, StoreOption, open_store
from drengine.model.errors import DrengineError
from drengine.model.points import PointSelector
from drengine.policy.kept import PolicyFile
from drengine.target.config import load_target_config
from drengine.target.quotas import QuotaOptions, Quotas
from drengine.terminal import emit_json, human_bytes, show_table

if TYPE_CHECKING:
    from drengine.store.store import Store

app = typer.Typer(add_completion=False)

HOUR_NS = 3600 * 10**9


@app.command("list")
def show(
    store: StoreOption,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="The target's file, for quotas of its own (or as DRENGINE_CONFIG says); else the defaults.",
            callback=target_file,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the sources of a store, and what each uses of what it may."""
    target = load_target_config(config, {}) if config else None
    quotas = Quotas(target.quotas, target.quota) if target else Quotas(QuotaOptions())
    with open_store(store, read_only=True) as opened:
        found = [_used(opened, each.name) for each in opened.sources()]
    for each in found:
        allowed = quotas.options(each["source"])
        each["allowed"] = {
            "volumes": allowed.volumes,
            "volume_bytes": allowed.volume_bytes,
            "points_an_hour": allowed.points_an_hour,
        }
    if json:
        emit_json(found)
        return
    show_table(
        ("source", "generation", "volumes", "size", "points in the last hour"),
        [
            (
                each["source"],
                str(each["generation"]),
                _of(each["volumes"], each["allowed"]["volumes"]),
                _of(each["volume_bytes"], each["allowed"]["volume_bytes"], human_bytes),
                _of(each["points_an_hour"], each["allowed"]["points_an_hour"]),
            )
            for each in found
        ],
        title="Sources",
    )


@app.command()
def add(name: Annotated[str, typer.Argument(help="Its name.")], store: StoreOption, json: JsonOption = False) -> None:
    """Take in a source before its agent comes: it is known, and has an allowance of its own, from then on.

    One that was retired may come back.
    """
    file = PolicyFile(store)
    with open_store(store) as opened, recorded(store, "source.add", name):
        info = opened.ensure_source(name)
        with file.changing() as policy:
            others = {each: retired for each, retired in policy.retired.items() if each != name}
            if others != policy.retired:
                file.keep(msgspec.structs.replace(policy, retired=others))
    if json:
        emit_json({"source": info.name, "generation": info.generation})
    else:
        print(f"{info.name} is known, at generation {info.generation}")


def _used(store: Store, name: str) -> dict[str, Any]:
    info = store.source(name)
    try:
        volumes = store.find_point(name, PointSelector()).geometry
    except DrengineError:
        volumes = ()  # it has no point yet
    since = time.time_ns() - HOUR_NS
    points = store.points(name, branch=info.active_branch)
    return {
        "source": name,
        "generation": info.generation,
        "volumes": len(volumes),
        "volume_bytes": sum(each.size_bytes for each in volumes),
        "points_an_hour": sum(point.received_ns >= since for point in points),
    }


def _of(used: int, allowed: int, shown: Any = str) -> str:
    return f"{shown(used)} of {shown(allowed)}" if allowed else str(shown(used))
