"""What the commands that use a CA's directory share."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from drengine.cli.chosen import ca_directory, needed
from drengine.config import ADDRESS, Address
from drengine.config.kinds import parse_duration
from drengine.identity.authority import Authority
from drengine.identity.errors import CA_UNUSABLE
from drengine.model.errors import DrengineError

PASSPHRASE_VARIABLE = "DRENGINE_CA_PASSPHRASE"
CREDENTIALS_VARIABLE, CREDENTIAL = "CREDENTIALS_DIRECTORY", "ca-passphrase"
"""systemd says in the first where the second lies (LoadCredential=)."""

CaOption = Annotated[
    Path,
    typer.Option(
        "--ca",
        envvar="DRENGINE_CA",
        help="The CA's directory (or DRENGINE_CA, or `ca` of [fleet] as DRENGINE_CONFIG says).",
        default_factory=lambda: None,
        show_default=False,
        callback=needed(ca_directory),
    ),
]
PassphraseOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        help=f"File with the passphrase of the CA's key; otherwise {PASSPHRASE_VARIABLE}, otherwise the systemd "
        f"credential {CREDENTIAL}, otherwise none.",
    ),
]


def open_ca(ca: Path, passphrase_file: Path | None = None) -> Authority:
    """The CA in a directory.

    Raises:
        DrengineError: CA_UNUSABLE.
    """
    return Authority(ca, passphrase=passphrase_of(passphrase_file))


def passphrase_of(file: Path | None) -> bytes | None:
    """The passphrase of the CA's key, from where it was put; None for none.

    Raises:
        DrengineError: CA_UNUSABLE.
    """
    given = os.environb.get(PASSPHRASE_VARIABLE.encode())
    if file is None and given:
        return given
    if file is None and (credentials := os.environ.get(CREDENTIALS_VARIABLE)):
        credential = Path(credentials) / CREDENTIAL
        file = credential if credential.exists() else None
    if file is None:
        return None
    try:
        content = file.read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise DrengineError(CA_UNUSABLE, f"{file}: {error.strerror or error}") from error
    if not content:
        raise DrengineError(CA_UNUSABLE, f"{file} is empty, and should hold a passphrase")
    return content


def seconds_of(text: str) -> float:
    """A duration that somebody typed.

    Raises:
        BadParameter: it is none.
    """
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def shown_moment(seconds: float) -> str:
    """Seconds since 1970, for people and machines."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def typed_address(text: str) -> Address:
    """A HOST:PORT that somebody typed.

    Raises:
        BadParameter: it is none.
    """
    try:
        return ADDRESS.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
