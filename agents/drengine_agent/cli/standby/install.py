"""`drengine-agent standby install` and `uninstall`: this host as a recovery host, once or again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from drengine_agent.cli.common import JsonOption, typed_seconds
from drengine_agent.cli.install_options import (
    BrokerOption,
    CaOption,
    CertificateOption,
    DataNetworkOption,
    DryRunOption,
    KeyOption,
    RootOption,
    SiteOption,
    StartOption,
    TokenOption,
    YesOption,
)
from drengine_agent.install import standby
from drengine_agent.install.places import STANDBY
from drengine_agent.install.standby import StandbyWishes
from drengine_agent.install.wishes import installed_values

app = typer.Typer(add_completion=False)


@app.command()
def install(
    name: Annotated[str, typer.Option("--name", help="This host's name, as runbooks call it.")] = "",
    broker: BrokerOption = "",
    site: SiteOption = "",
    data_network: DataNetworkOption = None,
    token: TokenOption = "",
    certificate: CertificateOption = None,
    key: KeyOption = None,
    ca: CaOption = None,
    mount_root: Annotated[
        list[str] | None,
        typer.Option("--mount-root", help="Directory in and below which disks may be mounted; once for each."),
    ] = None,
    start: StartOption = True,
    wait: Annotated[
        str, typer.Option("--wait", help="How long the broker is waited for; 0s: install unproved.")
    ] = "15s",
    root: RootOption = Path("/"),
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Install this host as a recovery host: a service that takes orders over the broker. Or change what was installed.

    Options that are not said stay as they are installed; a file that somebody changed is never overwritten. Installing
    twice is installing once.
    """
    root = root.absolute()
    given = {"certificate": certificate, "key": key, "ca": ca}
    wishes = StandbyWishes(
        name=name,
        broker=broker,
        site=site,
        data_networks=data_network or (),
        roots=mount_root or (),
        tls={word: path for word, path in given.items() if path is not None},
        token=token,
    )
    if not installed_values(root, STANDBY.config) and not (name and broker):
        raise typer.BadParameter("--name and --broker are needed")
    seconds = typed_seconds(wait)
    standby.install(wishes, root, start=start, wait_seconds=seconds, dry_run=dry_run, yes=yes, json=json)


@app.command()
def uninstall(
    purge: Annotated[bool, typer.Option(help="Also a configuration or unit that somebody changed.")] = False,
    root: RootOption = Path("/"),
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """Stop the recovery host's service and remove it: configuration, state, and the program if no agent runs it.

    Refused while workloads are up. A configuration or unit that somebody changed since is kept, and said so, without
    --purge.
    """
    standby.uninstall(root.absolute(), purge=purge, dry_run=dry_run, yes=yes, json=json)
