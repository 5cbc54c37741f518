"""`drengine runbook init`: a first runbook for what the store holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from drengine.cli.common import open_store
from drengine.cli.run_options import StoreOptions
from drengine.failover.config import load_orchestrator_config
from drengine.failover.drivers.available import available_drivers
from drengine.failover.runbook.errors import RUNBOOK_EXISTS
from drengine.failover.runbook.init import KnownSource, initial_runbook
from drengine.model.errors import DrengineError
from drengine.model.points import PointSelector
from drengine.policy.kept import PolicyFile
from drengine.target.errors import SOURCE_NEEDED
from drengine.terminal import note
from drengine.terminal.options import grouped
from drengine.terminal.output import write_output

app = typer.Typer(add_completion=False)


@app.command()
@grouped
def init(
    name: Annotated[str, typer.Argument(help="Name of the runbook.")],
    source: Annotated[
        list[str] | None, typer.Option("--source", help="Only this source; may be given several times, in their order.")
    ] = None,
    driver: Annotated[str, typer.Option("--driver", help="Launch driver.")] = "command",
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
    text = initial_runbook(name, found, driver=driver)
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


def _sources_in(store: Path, wanted: list[str] | None) -> list[KnownSource]:
    found = []
    with open_store(store, read_only=True) as opened:
        retired = PolicyFile(store).read().retired
        every = [each.name for each in opened.sources() if each.name not in retired]
        names = [opened.source(name).name for name in wanted] if wanted else every
        for name in dict.fromkeys(names):
            try:
                geometry = opened.find_point(name, PointSelector()).geometry
            except DrengineError:
                geometry = ()
            found.append(KnownSource(name, {volume.name: volume.size_bytes for volume in geometry}))
    return found
