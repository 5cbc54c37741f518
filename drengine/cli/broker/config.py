"""`drengine broker config`: Mosquitto's files, written for this site."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from drengine.cli.ca_options import open_ca
from drengine.cli.common import JsonOption
from drengine.enrolment.client import identities
from drengine.enrolment.mosquitto import (
    ACL_FILE,
    CONFIGURATION_FILE,
    DEFAULT_FOLDER,
    access_list,
    configuration,
    pattern_list,
    write_file,
)
from drengine.enrolment.parties import living_parties
from drengine.enrolment.place import KEY_FILE, Place
from drengine.identity.errors import BROKER_FILES
from drengine.identity.names import COMMANDER, Role, identity_among
from drengine.model.errors import DrengineError
from drengine.ownership import give_tree, kept_from, make_directory
from drengine.terminal import emit_json, note
from drengine.transport.files import CRL_FILE, TlsFiles
from drengine.transport.tls_check import Side, TlsReport, check_files

app = typer.Typer(add_completion=False)


@app.command()
def config(
    to: Annotated[
        Path, typer.Option("--to", help="Mosquitto's folder: the configuration goes into its conf.d.")
    ] = DEFAULT_FOLDER.parent,
    place: Annotated[
        Path | None,
        typer.Option(
            "--place",
            help="Folder of the broker's certificate, in which the ACL lies too; default: drengine "
            "in Mosquitto's folder.",
        ),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            "--ca",
            help="A CA's directory on this host that says who there is; default: the authority with "
            "which the broker was enrolled.",
        ),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Where it listens.")] = 8883,
    user: Annotated[str, typer.Option("--user", help="As whom Mosquitto runs.")] = "mosquitto",
    site: Annotated[
        str, typer.Option("--site", help="The site's name, where certificates of another CA don't say it.")
    ] = "main",
    orchestrator: Annotated[
        list[str] | None,
        typer.Option("--orchestrator", help="Common name that may command, where certificates don't say who does."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write Mosquitto's configuration and ACL for this site, on the broker's host.

    Certificate and ACL become the property of Mosquitto's user. Nothing is restarted. `drengine broker follow` keeps
    the ACL as it should be from then on, where there is an authority.
    """  # fmt: skip
    enrolled = Place((place or to / DEFAULT_FOLDER.name).absolute())
    report = _checked(to, enrolled)
    has_crl = _write_parties(enrolled, ca, site, orchestrator or [COMMANDER])
    written = _write_configuration(to.absolute(), enrolled, port, has_crl=has_crl)
    give_tree(enrolled.folder, user)
    if reason := kept_from(enrolled.folder / KEY_FILE, user):
        raise DrengineError(BROKER_FILES, f"the broker could not read its key: {reason}")
    if json:
        emit_json({"configuration": written, "acl": enrolled.folder / ACL_FILE, "port": port, **report.as_json()})
        return
    print(f"wrote {written} and {enrolled.folder / ACL_FILE}")
    for line in report.lines():
        print(line)
    note("now: systemctl restart mosquitto")
    if enrolled.authority is not None:
        note("and:  systemctl enable --now drengine-broker, which keeps certificate, CRL and ACL as the authority says")


def _checked(mosquitto: Path, place: Place) -> TlsReport:
    """The broker's certificate, as peers will see it.

    Raises:
        DrengineError: BROKER_FILES, there is none or it is another party's, or no Mosquitto; BAD_TLS_FILES.
    """
    if not mosquitto.is_dir():
        hint = "Install it (`apt install mosquitto`), or name its folder: --to DIR."
        raise DrengineError(BROKER_FILES, f"there is no folder {mosquitto}: Mosquitto is not here", hint=hint)
    if not place.is_enrolled:
        hint = (
            f"Beside the CA: `drengine token create --role broker`; here: `drengine enrol --to {place.folder}`. Or lay "
            "certificate.pem, key.pem and ca.pem of another CA there."
        )
        raise DrengineError(BROKER_FILES, f"{place.folder} holds no certificate of the broker", hint=hint)
    report = check_files(_files(place), Side.SERVER, now=time.time())
    identity = identity_among(report.certificate.uris)
    if identity is not None and identity.role is not Role.BROKER:
        raise DrengineError(BROKER_FILES, f"the certificate in {place.folder} is {identity}, and no broker's")
    return report


def _write_parties(place: Place, ca: Path | None, site: str, orchestrators: list[str]) -> bool:
    """The ACL, by whoever knows who there is; whether there is a CRL."""
    if ca is not None:
        authority = open_ca(ca)
        index = authority.index()
        write_file(place.folder / CRL_FILE, authority.write_crl().decode())
        text = access_list(index.site, living_parties(index, time.time()))
    elif place.authority is not None:
        answer = asyncio.run(identities(place))
        text = access_list(answer.site, answer.identities)
    else:
        text = pattern_list(site, orchestrators)
    write_file(place.folder / ACL_FILE, text)
    return (place.folder / CRL_FILE).exists()


def _write_configuration(mosquitto: Path, place: Place, port: int, *, has_crl: bool) -> Path:
    main, folder = mosquitto / "mosquitto.conf", mosquitto / "conf.d"
    try:
        said = main.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        said = ""
    if "include_dir" not in said:
        note(f"warning: {main} does not include {folder}: add the line  include_dir {folder}")
    make_directory(folder, mode=0o755)
    write_file(folder / CONFIGURATION_FILE, configuration(place.folder, port=port, has_crl=has_crl, main=said))
    return folder / CONFIGURATION_FILE


def _files(place: Place) -> TlsFiles:
    files = place.files
    return files if files.crl and files.crl.exists() else replace(files, crl=None)
