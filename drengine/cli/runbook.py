"""`drengine runbook`: writing runbooks and finding what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from drengine.cli.common import JsonOption
from drengine.cli.engine import ConfigOption, EngineStoreOption, StateOption, load_config
from drengine.model.errors import DrengineError
from drengine.terminal import emit_json, human_time, note, show_table
from drengine.terminal.output import printable, write_output

if TYPE_CHECKING:
    from drengine.failover.registry import Registry
    from drengine.failover.runbook.init import KnownSource

app = typer.Typer(add_completion=False)

FileArgument = Annotated[Path, typer.Argument(help="The runbook's file.")]
StoredArgument = Annotated[str, typer.Argument(help="A runbook's name; `drengine runbook list` lists them.")]


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="Name of the runbook.")],
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    source: Annotated[
        list[str] | None, typer.Option("--source", help="Only this source; may be given several times, in their order.")
    ] = None,
    driver: Annotated[str, typer.Option("--driver", help="Launch driver.")] = "command",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File; default: standard output.")] = None,
) -> None:
    """Write a runbook for the sources in the store."""
    from drengine.failover.drivers.available import available_drivers  # noqa: PLC0415
    from drengine.failover.runbook.errors import RUNBOOK_EXISTS  # noqa: PLC0415
    from drengine.failover.runbook.init import initial_runbook  # noqa: PLC0415
    from drengine.target.errors import SOURCE_NEEDED  # noqa: PLC0415

    found = _sources_in(load_config(config, store).store, source)
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


@app.command()
def validate(
    file: FileArgument,
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    json: JsonOption = False,
) -> None:
    """Say what is wrong with a runbook: each mistake with line, column and hint.

    Ends with 103 if it can't be run. With a store or configuration it is also checked that the sources are registered.
    """
    from drengine.failover.runbook.errors import BAD_RUNBOOK  # noqa: PLC0415
    from drengine.failover.runbook.reader import examine, read_runbook_text  # noqa: PLC0415
    from drengine.failover.session import load_drivers  # noqa: PLC0415

    names = None
    if config is not None or store is not None:
        names = [each.name for each in _sources_in(load_config(config, store).store, None)]
    examined = examine(read_runbook_text(file), sources=names, drivers=load_drivers())
    valid = examined.runbook is not None
    if json:
        findings = [
            {
                "id": each.id,
                "line": each.place.line,
                "column": each.place.column,
                "path": each.path,
                "message": each.message,
                "hint": each.hint,
                "warning": each.warning,
            }
            for each in examined.findings
        ]
        emit_json({"file": str(file), "valid": valid, "findings": findings})
    else:
        for finding in examined.findings:
            print(printable(finding.shown(str(file))))
        note(f"{file}: {'can be run' if valid else 'can not be run'}")
    if not valid:
        raise typer.Exit(BAD_RUNBOOK.exit_code)


@app.command()
def schema() -> None:
    """Print the JSON Schema of runbooks, by which editors complete them."""
    from drengine.failover.runbook.schema import schema_text  # noqa: PLC0415

    write_output(schema_text())


@app.command(name="list")
def list_runbooks(
    config: ConfigOption = None, store: EngineStoreOption = None, state: StateOption = None, json: JsonOption = False
) -> None:
    """List the runbooks of which runs were begun, each in its newest version."""
    registry = _registry(config, store, state)
    try:
        found = registry.runbooks()
    finally:
        registry.close()
    if json:
        emit_json([{"name": each.name, "version": each.version, "at_ns": each.at_ns} for each in found])
        return
    if not found:
        note("no runbook was run yet")
        return
    rows = [(each.name, each.version[:12], human_time(each.at_ns)[:19]) for each in found]
    show_table(("runbook", "version", "first used"), rows, title="Runbooks")


@app.command()
def show(
    name: StoredArgument,
    config: ConfigOption = None,
    store: EngineStoreOption = None,
    state: StateOption = None,
    version: Annotated[str | None, typer.Option("--version", help="A version in full; default: the newest.")] = None,
) -> None:
    """Print a runbook as it was run."""
    registry = _registry(config, store, state)
    try:
        write_output(registry.runbook(name, version).text)
    finally:
        registry.close()


def _registry(config: Path | None, store: Path | None, state: Path | None) -> Registry:
    from drengine.failover.registry import Registry  # noqa: PLC0415
    from drengine.model.clock import SystemClock  # noqa: PLC0415

    return Registry.open(load_config(config, store, state).registry_url, clock=SystemClock())


def _sources_in(store: Path, wanted: list[str] | None) -> list[KnownSource]:
    from drengine.cli.common import open_store  # noqa: PLC0415
    from drengine.failover.runbook.init import KnownSource  # noqa: PLC0415
    from drengine.model.points import PointSelector  # noqa: PLC0415

    found = []
    with open_store(store, read_only=True) as opened:
        names = [opened.source(name).name for name in wanted] if wanted else [each.name for each in opened.sources()]
        for name in dict.fromkeys(names):
            try:
                geometry = opened.find_point(name, PointSelector()).geometry
            except DrengineError:
                geometry = ()
            found.append(KnownSource(name, {volume.name: volume.size_bytes for volume in geometry}))
    return found
