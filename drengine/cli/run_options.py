"""The options of the commands about runs, each defined once; groups of them are one parameter (`terminal.grouped`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from drengine.cli.chosen import orchestrator_file, store_of
from drengine.cli.common import JsonOption

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="TOML file with the orchestrator's options (or as DRENGINE_CONFIG says).",
        callback=orchestrator_file,
    ),
]
EngineStoreOption = Annotated[
    Path | None, typer.Option("--store", "-s", envvar="DRENGINE_STORE", help="The store's directory.")
]
StateOption = Annotated[
    Path | None,
    typer.Option("--state", envvar="DRENGINE_STATE", help="Directory of the registry, instances and reports."),
]
ExportOption = Annotated[
    str | None,
    typer.Option("--export", envvar="DRENGINE_EXPORT", help="The target's NBD address: HOST:PORT or unix:PATH."),
]
UrlOption = Annotated[
    str,
    typer.Option(
        "--url",
        envvar="DRENGINE_URL",
        help="Orchestrator to ask: https://HOST:PORT, or unix:PATH; default: the one of this `state`, if it runs.",
    ),
]
CacertOption = Annotated[
    Path | None,
    typer.Option("--cacert", envvar="DRENGINE_CACERT", help="CA that signs that orchestrator's certificate (PEM)."),
]
WaitOption = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Wait for approvals, or end with 108 when one is needed.")
]
NoteOption = Annotated[str, typer.Option("--note", help="Kept with the request.")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Go on although a source can't be fenced; the report says so first.")
]
DespiteOption = Annotated[
    list[str] | None,
    typer.Option(
        "--despite",
        metavar="CHECK",
        help="Go on although this check of `drengine ready` does not pass; repeatable, and in the audit log.",
    ),
]
PointOption = Annotated[
    str, typer.Option("--point", help="`latest`, a time, a point's id or its label; default: the runbook's.")
]
OntoOption = Annotated[
    list[str] | None,
    typer.Option(
        "--onto",
        metavar="HOST",
        help="A spare host becomes the source's home; SOURCE=HOST, where there are several, repeatable.",
    ),
]
DiskOption = Annotated[
    list[str] | None,
    typer.Option(
        "--disk",
        metavar="VOLUME=DISK",
        help="With --onto: which disk of that host, by its name or path there, takes which volume; default: the one "
        "of the same name. SOURCE/VOLUME=DISK, where several move; repeatable.",
    ),
]
RunArgument = Annotated[str, typer.Argument(help="The run's id, or `last` for the newest; `drengine runs` lists them.")]
RunbookArgument = Annotated[str, typer.Argument(help="A runbook's file, or the name under which it was kept.")]


@dataclass(frozen=True)
class StoreOptions:
    """Where the orchestrator's options and the store are."""

    config: ConfigOption = None
    store: EngineStoreOption = None

    def given(self) -> dict[str, str]:
        """What the command line says of the orchestrator's options; it wins over the file."""
        options = {name: value for name, value in vars(self).items() if name in ("store", "state", "export")}
        if self.config is None:
            options["store"] = store_of(self.store)
        return {name: str(value) for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class RegistryOptions(StoreOptions):
    """The same and the registry, for commands that launch nothing."""

    state: StateOption = None


@dataclass(frozen=True)
class EngineOptions(RegistryOptions):
    """The same and what launched workloads attach to."""

    export: ExportOption = None


@dataclass(frozen=True)
class DoorOptions:
    """Which orchestrator is asked."""

    url: UrlOption = ""
    cacert: CacertOption = None


@dataclass(frozen=True)
class LookOptions(RegistryOptions, DoorOptions):
    """For a command that only looks at runs."""


@dataclass(frozen=True)
class PlanOptions(EngineOptions, DoorOptions):
    """For a command that looks at what would be done."""


@dataclass(frozen=True)
class RequestOptions(LookOptions):
    """For a command that only asks something of a run."""

    json: JsonOption = False


@dataclass(frozen=True)
class OrderOptions(PlanOptions):
    """For a command that carries a run out."""

    json: JsonOption = False


@dataclass(frozen=True)
class RunOptions(OrderOptions):
    """For a command that carries a run out, past approvals or up to them."""

    wait: WaitOption = True
