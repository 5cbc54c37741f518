"""`drengine ca`: the site's certificate authority."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from drengine.audit import recorded
from drengine.cli.ca_options import CaOption, PassphraseOption, open_ca, passphrase_of, seconds_of, shown_moment
from drengine.cli.common import JsonOption
from drengine.config.kinds import show_duration
from drengine.durable import replace_durably
from drengine.identity.authority import (
    CA_SECONDS,
    CERTIFICATE_FILE,
    CERTIFICATE_SECONDS,
    CRL_FILE,
    CRL_SECONDS,
    Authority,
    Issued,
)
from drengine.identity.errors import CA_REFUSED, CA_UNUSABLE
from drengine.identity.index import Entry
from drengine.identity.keys import new_key, requested_key, write_key
from drengine.identity.names import SCHEME, Identity
from drengine.model.errors import DrengineError
from drengine.ownership import make_directory
from drengine.terminal import emit_json, show_table

app = typer.Typer(add_completion=False)

KEY, CERTIFICATE, AUTHORITY = "key.pem", "certificate.pem", "ca.pem"
"""What a party is given: a folder with these."""
CA_VALID, CERTIFICATE_VALID, CRL_VALID = map(show_duration, (CA_SECONDS, CERTIFICATE_SECONDS, CRL_SECONDS))


IdentityArgument = Annotated[
    str,
    typer.Argument(
        metavar="IDENTITY",
        help="ROLE/NAME, such as agent/shop or target/outpost, or drengine://SITE/ROLE/NAME. Roles: agent (its name is "
        "its source's), target, orchestrator, host (a recovery host), broker, authority.",
    ),
]
RequestOption = Annotated[
    Path | None,
    typer.Option("--csr", help="Certificate request (PEM) made on the party's host. Without: a key is made here."),
]
FolderOption = Annotated[
    Path, typer.Option("--to", help=f"Folder for {CERTIFICATE}, {AUTHORITY} and, when it is made here, {KEY}.")
]
ValidOption = Annotated[
    str, typer.Option("--valid", help="How long the certificate is valid: 12h, 30d; never longer than the CA.")
]


@app.command()
def init(
    ca: CaOption,
    site: Annotated[str, typer.Option("--site", help="The site's name; it is part of every identity.")] = "main",
    valid: Annotated[str, typer.Option("--valid", help="How long the CA is valid.")] = CA_VALID,
    passphrase_file: PassphraseOption = None,
    json: JsonOption = False,
) -> None:
    """Make a CA for a site, in a missing or empty directory."""
    made = Authority.create(ca, site, passphrase=passphrase_of(passphrase_file), seconds=seconds_of(valid))
    with recorded(ca, "ca.init", site):
        pass  # the directory had to be empty before
    until = shown_moment(made.ends_at)
    if json:
        emit_json({"ca": ca, "site": site, "certificate": ca / CERTIFICATE_FILE, "valid_until": until})
    else:
        print(f"made a CA for the site {site} in {ca}, valid until {until}; parties trust {ca / CERTIFICATE_FILE}")


@app.command()
def issue(
    identity: IdentityArgument,
    ca: CaOption,
    to: FolderOption,
    host: Annotated[
        list[str] | None,
        typer.Option("--host", help="DNS name or IP address that clients connect to; a target and a broker need one."),
    ] = None,
    csr: RequestOption = None,
    valid: ValidOption = CERTIFICATE_VALID,
    both_ways: Annotated[
        bool,
        typer.Option(
            "--both-ways", help="Valid for both sides of a connection, such as a target's that goes to a broker, too."
        ),
    ] = False,
    passphrase_file: PassphraseOption = None,
    json: JsonOption = False,
) -> None:
    """Issue a certificate that says who a party is, for its own request or with a key made here."""
    authority = open_ca(ca, passphrase_file)
    if present := next((name for name in (KEY, CERTIFICATE) if (to / name).exists()), None):
        raise DrengineError(CA_REFUSED, f"{to / present} is there already: `drengine ca renew` replaces it")
    public, key = _keys(csr)
    named = _identity(identity, authority)
    facts = {"hosts": host or [], "both_ways": both_ways, "valid": valid, "csr": str(csr or "")}
    with recorded(ca, "ca.issue", str(named), **facts):
        issued = authority.issue(named, public, hosts=host or (), both_ways=both_ways, seconds=seconds_of(valid))
        _hand_out(authority, issued, to, key, json=json)


@app.command()
def renew(
    identity: IdentityArgument,
    ca: CaOption,
    to: FolderOption,
    csr: RequestOption = None,
    valid: ValidOption = CERTIFICATE_VALID,
    passphrase_file: PassphraseOption = None,
    json: JsonOption = False,
) -> None:
    """Issue again what a party has, with a new key; the old certificate stays valid until it expires."""
    authority = open_ca(ca, passphrase_file)
    public, key = _keys(csr)
    named = _identity(identity, authority)
    with recorded(ca, "ca.renew", str(named), valid=valid, csr=str(csr or "")):
        issued = authority.renew(named, public, seconds=seconds_of(valid))
        _hand_out(authority, issued, to, key, json=json)


@app.command()
def revoke(
    ca: CaOption,
    identity: Annotated[str | None, typer.Argument(help="ROLE/NAME: all its certificates that are valid.")] = None,
    serial: Annotated[str | None, typer.Option("--serial", help="One certificate, as `list` shows it.")] = None,
    passphrase_file: PassphraseOption = None,
    json: JsonOption = False,
) -> None:
    """Revoke a party's certificates, or one, and write the CRL."""
    if (identity is None) is (serial is None):
        raise typer.BadParameter("name an identity, or a certificate with --serial")
    authority = open_ca(ca, passphrase_file)
    named = None if identity is None else _identity(identity, authority)
    with recorded(ca, "ca.revoke", str(named or serial)):
        revoked = authority.revoke(identity=named, serial=serial.lower() if serial else None)
    if json:
        emit_json({"revoked": [_told(each) for each in revoked], "crl": ca / CRL_FILE})
        return
    for each in revoked:
        print(f"revoked {each.identity}, serial {each.serial}")
    print(
        f"{ca / CRL_FILE} says so; `drengine ca serve` tells whoever is enrolled, others need the file (`crl` in [tls])"
    )


@app.command("list")
def list_(
    ca: CaOption,
    all_: Annotated[bool, typer.Option("--all", help="Also those that have expired.")] = False,
    json: JsonOption = False,
) -> None:
    """List the certificates that were issued: whose, until when, revoked or not."""
    entries = [each for each in Authority(ca).entries() if all_ or each.state(time.time()) != "expired"]
    if json:
        emit_json([_told(each) for each in entries])
        return
    rows = [
        (each.identity, each.serial, each.state(time.time()), shown_moment(each.ends_at), ", ".join(each.hosts))
        for each in entries
    ]
    show_table(("identity", "serial", "state", "valid until", "hosts"), rows)


@app.command()
def crl(
    ca: CaOption,
    valid: Annotated[
        str, typer.Option("--valid", help="Another must follow within so long: an expired CRL refuses everybody.")
    ] = CRL_VALID,
    passphrase_file: PassphraseOption = None,
    json: JsonOption = False,
) -> None:
    """Sign the list of what is revoked (CRL, in PEM) anew, and print it."""
    authority = open_ca(ca, passphrase_file)
    with recorded(ca, "ca.crl", "", valid=valid):
        content = authority.write_crl(seconds=seconds_of(valid)).decode()
    if json:
        emit_json({"crl": content, "file": ca / CRL_FILE})
    else:
        print(content, end="")


def _identity(text: str, authority: Authority) -> Identity:
    return Identity.parse(text if text.startswith(f"{SCHEME}:") else f"{SCHEME}://{authority.site}/{text}")


def _keys(csr: Path | None) -> tuple[CertificatePublicKeyTypes, EllipticCurvePrivateKey | None]:
    """The public key to sign, and its private one where it is made here."""
    if csr is None:
        key = new_key()
        return key.public_key(), key
    try:
        return requested_key(csr.read_bytes()), None
    except OSError as error:
        raise DrengineError(CA_REFUSED, f"{csr}: {error.strerror or error}") from error


def _hand_out(
    authority: Authority, issued: Issued, folder: Path, key: EllipticCurvePrivateKey | None, *, json: bool
) -> None:
    """Write a party's files. The key comes first: a certificate without its key would not be taken up."""
    try:
        make_directory(folder, mode=0o700)
        if key is not None:
            replace_durably(folder / KEY, write_key(key), mode=0o600)
        replace_durably(folder / CERTIFICATE, issued.certificate, mode=0o644)
        replace_durably(folder / AUTHORITY, authority.certificate, mode=0o644)
    except OSError as error:
        raise DrengineError(CA_UNUSABLE, f"{error.filename or folder}: {error.strerror or error}") from error
    if json:
        emit_json({**_told(issued.entry), "folder": folder})
        return
    until = shown_moment(issued.entry.ends_at)
    print(f"{folder / CERTIFICATE} is {issued.entry.identity}, serial {issued.entry.serial}, valid until {until}")


def _told(entry: Entry) -> dict[str, Any]:
    revoked = entry.revoked_at
    return {
        "identity": entry.identity,
        "serial": entry.serial,
        "state": entry.state(time.time()),
        "hosts": entry.hosts,
        "both_ways": entry.both_ways,
        "valid_from": shown_moment(entry.begins_at),
        "valid_until": shown_moment(entry.ends_at),
        "revoked_at": None if revoked is None else shown_moment(revoked),
    }
