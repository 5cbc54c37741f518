"""`drengine-agent install`: onto this server, once or again."""

from __future__ import annotations

import ipaddress
import platform
import re
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from drengine.config import ADDRESSES
from drengine.terminal import human_bytes, note
from drengine_agent.cli.common import JsonOption, named_volumes, typed_seconds
from drengine_agent.cli.install_options import (
    AllDisksOption,
    BandwidthOption,
    BrokerOption,
    CaOption,
    CertificateOption,
    CutsOption,
    DataNetworkOption,
    DryRunOption,
    KeyOption,
    ListenOption,
    MetricsOption,
    RootOption,
    SiteOption,
    SourceOption,
    SpareOption,
    StartOption,
    StateOption,
    StoreOption,
    TargetOption,
    TokenOption,
    TrackerOption,
    VolumeOption,
    WaitOption,
    YesOption,
)
from drengine_agent.install import steps
from drengine_agent.install.disks import disks
from drengine_agent.install.wishes import Wishes, installed_values

app = typer.Typer(add_completion=False)


@app.command()
def install(
    source: SourceOption = "",
    target: TargetOption = "",
    volume: VolumeOption = None,
    all_disks: AllDisksOption = False,
    data_network: DataNetworkOption = None,
    token: TokenOption = "",
    certificate: CertificateOption = None,
    key: KeyOption = None,
    ca: CaOption = None,
    broker: BrokerOption = "",
    site: SiteOption = "",
    metrics: MetricsOption = "",
    cuts: CutsOption = "",
    bandwidth: BandwidthOption = "",
    tracker: TrackerOption = "",
    spare: SpareOption = False,
    listen: ListenOption = "",
    state_directory: StateOption = None,
    store: StoreOption = None,
    start: StartOption = True,
    wait: WaitOption = "60s",
    root: RootOption = Path("/"),
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Install the agent as a service of this server, after the doctor has spoken; or change what was installed.

    Asks for what is not said when a person is at the terminal. It ends well only with a session at the target. Options
    that are not said stay as they are installed; a file that somebody changed is never overwritten. Installing twice is
    installing once.
    """
    root = root.absolute()
    others = {
        "data_networks": list(data_network or ()),
        "control.address": broker,
        "control.site": site,
        "metrics": metrics,
        "cuts.kinds": cuts,
        "bandwidth": bandwidth,
        "nbd.listen": listen,
        "spare": spare,
    }
    wishes = Wishes(
        source=source,
        target=target,
        volumes=named_volumes(volume or ()),
        all_disks=all_disks,
        tracker=tracker,
        state_directory=state_directory.absolute() if state_directory else None,
        tls=_named(certificate=certificate, key=key, ca=ca),
        token=sys.stdin.readline().strip() if token == "-" else token,
        others={path: value for path, value in others.items() if value},
    )
    if not installed_values(root):
        wishes = _asked(wishes, quiet=yes or json, here=root == steps.HOST)
    seconds = typed_seconds(wait)
    steps.install(wishes, store, root, start=start, wait_seconds=seconds, dry_run=dry_run, yes=yes, json=json)


def _named(**paths: Path | None) -> dict[str, Path]:
    """Those that were said."""
    return {name: path for name, path in paths.items() if path is not None}


def _asked(wishes: Wishes, *, quiet: bool, here: bool) -> Wishes:
    """What a first installation needs and nobody said, asked of the person at the terminal."""
    has_disks = bool(wishes.volumes) or wishes.all_disks
    if wishes.source and wishes.target and has_disks:
        return wishes
    if quiet or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise typer.BadParameter("--source, --target and --volume (or --all-disks) are needed")
    source = wishes.source or typer.prompt("This server's name", default=_host_name(), err=True)
    target = wishes.target or typer.prompt("The target's HOST:PORT (of several, with commas)", err=True)
    wishes = replace(wishes, source=source, target=target)
    if not has_disks:
        wishes = replace(wishes, volumes=_asked_volumes())
    return wishes if _is_local(target) else _asked_beyond_loopback(wishes, here=here)


def _asked_beyond_loopback(wishes: Wishes, *, here: bool) -> Wishes:
    others: dict[str, Any] = dict(wishes.others)
    if "data_networks" not in others:
        usual = _network_of(wishes.target)
        answer = typer.prompt("Networks that block data may use (CIDR)", default=usual or None, err=True)
        others["data_networks"] = answer.replace(",", " ").split()
    token, tls = wishes.token, dict(wishes.tls)
    if not token and not tls:
        asked = "Token of `drengine token create` (empty: certificates are here already)"
        token = typer.prompt(asked, default="", show_default=False, err=True) if here else ""
        for name in () if token else ("certificate", "key", "ca"):
            tls[name] = Path(typer.prompt(f"PEM file: {name}", err=True))
    for path, what in (
        ("control.address", "The broker's HOST:PORT (empty: none)"),
        ("metrics", "HOST:PORT where Prometheus may ask (empty: nowhere)"),
    ):
        if path not in others and (answer := typer.prompt(what, default="", show_default=False, err=True)):
            others[path] = answer
    if "cuts.kinds" not in others and (answer := typer.prompt("Cuts: auto, quiet, frozen", default="auto", err=True)):
        others["cuts.kinds"] = answer
    return replace(wishes, others=others, token=token, tls=tls)


def _asked_volumes() -> dict[str, Path]:
    found = disks()
    for disk in found:
        on = f", mounted at {', '.join(disk.mounted)}" if disk.mounted else ""
        note(f"  {disk.path}  {human_bytes(disk.size_bytes)}{on}")
    usual = " ".join(f"{disk.name}={disk.path}" for disk in found if disk.mounted)
    answer = typer.prompt("Volumes to protect, as NAME=PATH", default=usual or None, err=True)
    return named_volumes(re.split(r"[,\s]+", answer.strip()))


def _host_name() -> str:
    return re.sub(r"[^a-z0-9._-]", "-", platform.node().partition(".")[0].lower()).strip("-._") or "server"


def _is_local(target: str) -> bool:
    addresses = _addresses_of(target)
    return bool(addresses) and all(each.is_loopback for each in addresses)


def _network_of(target: str) -> str:
    """The targets' own addresses as networks: the narrowest that do."""
    return " ".join(f"{each}/{each.max_prefixlen}" for each in _addresses_of(target))


def _addresses_of(target: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Of each target the first address; none where one has none."""
    try:
        found = [
            socket.getaddrinfo(each.host, each.port, type=socket.SOCK_STREAM)[0] for each in ADDRESSES.parse(target)
        ]
        return [ipaddress.ip_address(str(each[4][0]).partition("%")[0]) for each in found]
    except (OSError, ValueError, IndexError):
        return []
