"""`drengine runbook init`: a first runbook for what the store holds."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from drengine.cli.common import open_store
from drengine.cli.run_options import StoreOptions
from drengine.failover.config import load_orchestrator_config
from drengine.failover.drivers.available import available_drivers
from drengine.failover.runbook.errors import RUNBOOK_EXISTS
from drengine.failover.runbook.init import initial_runbook
from drengine.failover.runbook.launches import NEED_HOST, TOLD, KnownSource
from drengine.linux.identity import content_name
from drengine.model.errors import DrengineError
from drengine.model.names import check_name
from drengine.model.points import PointSelector, RecoveryPoint
from drengine.policy.kept import PolicyFile
from drengine.target.errors import SOURCE_NEEDED
from drengine.terminal import note
from drengine.terminal.options import grouped
from drengine.terminal.output import write_output

if TYPE_CHECKING:
    from drengine.store.store import Store

app = typer.Typer(add_completion=False)
HEAD_BYTES = 68 << 10
"""Holds every superblock that `content_name` knows."""


@app.command()
@grouped
def init(
    name: Annotated[str, typer.Argument(help="Name of the runbook.")],
    source: Annotated[
        list[str] | None, typer.Option("--source", help="Only this source; may be given several times, in their order.")
    ] = None,
    driver: Annotated[str, typer.Option("--driver", help="Launch driver.")] = "command",
    host: Annotated[
        str, typer.Option("--host", help="Recovery host of the launches; drivers standby and ec2 need one.")
    ] = "",
    fence: Annotated[
        str,
        typer.Option(
            "--fence",
            help="Program and arguments that switch a source off, `{source}` standing for the name of its host; "
            "without one a failover is blocked when an agent does not answer.",
        ),
    ] = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File; default: standard output.")] = None,
    *,
    options: StoreOptions,
) -> None:
    """Write a runbook for the sources in the store."""
    found = _sources_in(load_orchestrator_config(options.config, options.given()).store, source)
    if not found:
        raise DrengineError(SOURCE_NEEDED, "the store holds no source yet", hint="Protect a server first.")
    if driver not in available_drivers():
        raise typer.BadParameter(f"there is no driver {driver!r}; there are {', '.join(sorted(available_drivers()))}")
    if driver in NEED_HOST and not host:
        raise typer.BadParameter(f"driver {driver} needs a recovery host: --host NAME, as its own file calls it")
    if host:
        check_name(host, what="recovery host")
    text = initial_runbook(name, found, driver=driver, host=host, fence=_words(fence))
    if not fence:
        note("no fence command is in it: a failover is blocked when an agent does not answer; give one with --fence")
    for each in found:
        if each.inventory is None and driver in TOLD:
            note(f"the agent of {each.name} has not told what its server is made of: look at the launch settings")
    if output is None:
        write_output(text)
        return
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise DrengineError(RUNBOOK_EXISTS, f"{output} exists already") from error
    except OSError as error:
        raise DrengineError(RUNBOOK_EXISTS, f"{output} can't be written: {error.strerror}") from error
    note(f"wrote {output}; fill in the launch settings, then: drengine runbook validate {output}")


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise typer.BadParameter(f"--fence: {error}") from error


def _content(store: Store, point: RecoveryPoint) -> dict[str, str]:
    """What the volumes of a point begin with, by name."""
    with store.view(point) as view:
        heads = {each.name: view.read(each.volume, 0, min(each.size_bytes, HEAD_BYTES)) for each in point.geometry}
    return {name: content_name(bytes(head)).partition("=")[0] for name, head in heads.items()}


def _sources_in(store: Path, wanted: list[str] | None) -> list[KnownSource]:
    found = []
    with open_store(store, read_only=True) as opened:
        retired = PolicyFile(store).read().retired
        every = [each.name for each in opened.sources() if each.name not in retired]
        names = [opened.source(name).name for name in wanted] if wanted else every
        for name in dict.fromkeys(names):
            home = opened.home(name).agent
            try:
                point = opened.find_point(name, PointSelector())
            except DrengineError:
                found.append(KnownSource(name, {}, home=home))
            else:
                sizes = {volume.name: volume.size_bytes for volume in point.geometry}
                found.append(KnownSource(name, sizes, _content(opened, point), opened.inventory(name), home))
    return found
