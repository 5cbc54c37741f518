"""The options of `drengine-agent install`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from drengine.enrolment.joining import TOKEN_VARIABLE

SourceOption = Annotated[str, typer.Option("--source", help="This server's name at the target.")]
TargetOption = Annotated[
    str, typer.Option("--target", help="The target's HOST:PORT; of several targets of one store, with commas.")
]
VolumeOption = Annotated[list[str] | None, typer.Option("--volume", help="NAME=PATH; once for each volume.")]
AllDisksOption = Annotated[
    bool, typer.Option("--all-disks", help="Protect each disk that holds mounted file systems; later ones are added.")
]
TrackerOption = Annotated[
    str, typer.Option("--tracker", help="auto (as the doctor advises; the default), ebpf, nbd or scan.")
]
SpareOption = Annotated[
    bool,
    typer.Option("--spare", help="It stands ready to become the home of a source whose own is gone; protects nothing."),
]
ListenOption = Annotated[
    str, typer.Option("--listen", help="For nbd: unix:PATH or HOST:PORT where the volumes are served.")
]
DataNetworkOption = Annotated[
    list[str] | None,
    typer.Option("--data-network", help="Network (CIDR) that block data may use, beside loopback; once for each."),
]
BrokerOption = Annotated[str, typer.Option("--broker", help="The MQTT broker's HOST:PORT, for orders and reports.")]
SiteOption = Annotated[str, typer.Option("--site", help="The site's name, where it is not `main`.")]
MetricsOption = Annotated[str, typer.Option("--metrics", help="HOST:PORT where Prometheus may ask.")]
CutsOption = Annotated[
    str, typer.Option("--cuts", help="Which consistent cuts: auto, or of quiet, frozen, application.")
]
BandwidthOption = Annotated[str, typer.Option("--bandwidth", help="A limit, as the option `bandwidth`: 20MiB/s.")]
CertificateOption = Annotated[Path | None, typer.Option("--certificate", help="PEM file with this host's certificate.")]
KeyOption = Annotated[Path | None, typer.Option("--key", help="PEM file with its key.")]
CaOption = Annotated[Path | None, typer.Option("--ca", help="PEM file with the CA that signs targets and brokers.")]
TokenOption = Annotated[
    str,
    typer.Option(
        "--token",
        envvar=TOKEN_VARIABLE,
        help=f"What `drengine token create` printed, instead of certificates (or {TOKEN_VARIABLE}, which other users "
        "of this host can't read; or -, for a line of standard input). Not needed where this host has enrolled.",
    ),
]
StateOption = Annotated[Path | None, typer.Option("--state-directory", help="Where the agent keeps its state.")]
StoreOption = Annotated[Path | None, typer.Option("--store", help="A target's store on this host, for the doctor.")]
StartOption = Annotated[bool, typer.Option("--start/--no-start", help="Start the service when it is installed.")]
WaitOption = Annotated[
    str,
    typer.Option("--wait", help="How long the session and the first point are waited for; 0s: install unproved."),
]
RootOption = Annotated[Path, typer.Option("--root", help="Another host's file system, such as an image; not this one.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask whether to go on.")]
