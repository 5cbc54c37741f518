"""`drengine-agent install`: onto this server, once or again."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from drengine.terminal import human_bytes, note
from drengine_agent.cli.common import JsonOption, named_volumes
from drengine_agent.install import steps
from drengine_agent.install.disks import disks
from drengine_agent.install.wanted import Said, default_state_directory, installed_config

app = typer.Typer(add_completion=False)

RootOption = Annotated[Path, typer.Option("--root", help="Another host's file system, such as an image; not this one.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask whether to go on.")]


@app.command()
def install(
    source: Annotated[str, typer.Option(help="This server's name at the target.")] = "",
    target: Annotated[str, typer.Option(help="The target's HOST:PORT.")] = "",
    volume: Annotated[list[str] | None, typer.Option(help="NAME=PATH; once for each volume.")] = None,
    tracker: Annotated[str, typer.Option(help="auto (as the doctor advises), ebpf, nbd or scan.")] = "auto",
    listen: Annotated[str, typer.Option(help="For nbd: unix:PATH or HOST:PORT where the volumes are served.")] = "",
    state_directory: Annotated[Path | None, typer.Option(help="Where the agent keeps its state.")] = None,
    store: Annotated[Path | None, typer.Option(help="A target's store on this host, for the doctor.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="PEM file with this agent's certificate.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file with its key.")] = None,
    ca: Annotated[Path | None, typer.Option(help="PEM file with the CA that signs targets.")] = None,
    start: Annotated[bool, typer.Option(help="Start the agent when it is installed.")] = True,
    root: RootOption = Path("/"),
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Install the agent as a service of this server, after the doctor has spoken.

    Asks for what is not said when a person is at the terminal. A configuration that is there stays as it is when
    nothing else is said; one that somebody changed is never overwritten. Installing twice is installing once.
    """
    root = root.absolute()
    volumes: Mapping[str, Path] = named_volumes(volume or ())
    config = installed_config(root)
    said: Said | None = None
    if source or target or volumes or config is None:
        source, target, volumes = _asked(source, target, volumes, quiet=yes or json)
        state = state_directory or (config.state_directory if config else default_state_directory(volumes, root))
        given = {"certificate": certificate, "key": key, "ca": ca}
        tls = {name: path for name, path in given.items() if path is not None}
        said = Said(source, target, volumes, tracker, state.absolute(), tls, listen)
    steps.install(said, config, store, root, start=start, dry_run=dry_run, yes=yes, json=json)


def _asked(
    source: str, target: str, volumes: Mapping[str, Path], *, quiet: bool
) -> tuple[str, str, Mapping[str, Path]]:
    """What was not said, asked of the person at the terminal."""
    if source and target and volumes:
        return source, target, volumes
    if quiet or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise typer.BadParameter("--source, --target and --volume are needed")
    source = source or typer.prompt("This server's name", default=_host_name(), err=True)
    target = target or typer.prompt("The target's HOST:PORT", err=True)
    return source, target, volumes or _asked_volumes()


def _asked_volumes() -> dict[str, Path]:
    found = disks()
    for disk in found:
        on = f", mounted at {', '.join(disk.mounted)}" if disk.mounted else ""
        note(f"  /dev/{disk.name}  {human_bytes(disk.size_bytes)}{on}")
    usual = " ".join(f"{disk.name}=/dev/{disk.name}" for disk in found if disk.mounted)
    answer = typer.prompt("Volumes to protect, as NAME=PATH", default=usual or None, err=True)
    return named_volumes(re.split(r"[,\s]+", answer.strip()))


def _host_name() -> str:
    return re.sub(r"[^a-z0-9._-]", "-", platform.node().partition(".")[0].lower()).strip("-._") or "server"
