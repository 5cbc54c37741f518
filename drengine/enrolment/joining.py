"""`enrol`, as both command lines have it: a token, a name, a folder; what comes of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from drengine.enrolment.client import enrol
from drengine.enrolment.place import CA_FILE, CERTIFICATE_FILE, KEY_FILE, Place
from drengine.identity.tokens import Invitation
from drengine.terminal import emit_json, note

TOKEN_VARIABLE = "DRENGINE_TOKEN"
TokenOption = Annotated[
    str,
    typer.Option(
        "--token",
        envvar=TOKEN_VARIABLE,
        help=f"What `drengine token create` printed (or {TOKEN_VARIABLE}, which other users of this host can't read).",
    ),
]
NameOption = Annotated[str, typer.Option("--name", help="Who this host becomes; an agent has its source's name.")]


def join(token: str, name: str, folder: Path, *, json: bool) -> None:
    """Enrol this host, and tell.

    Raises:
        EnrolmentError: with the reason. TransportError: the authority can't be reached.
    """
    place = Place(folder.absolute())
    identity = asyncio.run(enrol(Invitation.parse(token), name, place))
    until = f"{place.certificate().not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
    files = {name.partition(".")[0]: place.folder / name for name in (CERTIFICATE_FILE, KEY_FILE, CA_FILE)}
    if json:
        emit_json({"identity": str(identity), "valid_until": until, **files})
        return
    print(f"this host is {identity}, until {until}; the program that uses the certificate renews it by itself")
    note(
        "\n".join(
            ["name its files in [tls], and in [control] or [broker]:", *(f'{k} = "{v}"' for k, v in files.items())]
        )
    )
