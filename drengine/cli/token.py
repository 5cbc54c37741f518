"""`drengine token`: who may join."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from drengine.audit import recorded
from drengine.cli.ca_options import CaOption, open_ca, seconds_of, shown_moment, typed_address
from drengine.cli.common import JsonOption
from drengine.config import Address
from drengine.enrolment.seen import remembered_address
from drengine.identity.errors import CA_REFUSED
from drengine.identity.names import Role
from drengine.identity.tokens import Invitation, Token
from drengine.model.errors import DrengineError
from drengine.terminal import emit_json, note, show_table

app = typer.Typer(add_completion=False)


@app.command()
def create(
    ca: CaOption,
    role: Annotated[Role, typer.Option("--role", help="What hosts that come with it become.")],
    name: Annotated[str, typer.Option("--name", help="The name that they may take, or a pattern: 'shop-*'.")],
    ttl: Annotated[str, typer.Option("--ttl", help="How long it counts.")] = "1h",
    uses: Annotated[int, typer.Option("--uses", min=1, help="How many certificates it may get.")] = 1,
    host: Annotated[
        list[str] | None,
        typer.Option("--host", help="DNS name or IP address that clients connect to; a target and a broker need one."),
    ] = None,
    both_ways: Annotated[
        bool, typer.Option("--both-ways", help="Certificates are valid for both sides of a connection.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="A name that is taken may be had; the certificates before are revoked.")
    ] = False,
    authority: Annotated[
        str | None,
        typer.Option("--authority", help="HOST:PORT of `drengine ca serve`, as hosts reach it; else where it runs."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make a token and print it, once: whoever has it may enrol a host under its role and names."""
    opened = open_ca(ca)
    address = _address(authority or remembered_address(ca))
    facts = {"name": name, "ttl": ttl, "uses": uses, "hosts": host or [], "both_ways": both_ways, "replace": replace}
    with recorded(ca, "token.create", str(role), **facts):
        made, secret = opened.create_token(
            role, name, seconds=seconds_of(ttl), uses=uses, hosts=host or (), both_ways=both_ways, replace=replace
        )
    text = str(Invitation(address, opened.issuing.fingerprint, made.id, secret))
    if json:
        emit_json({**_told(made), "token": text, "authority": str(address)})
        return
    print(text)
    until = shown_moment(made.ends_at)
    note(f"token {made.id}: {role} {name}, {made.uses} use(s), until {until}, at {address}; it is shown this once")


@app.command("list")
def list_(
    ca: CaOption,
    all_: Annotated[bool, typer.Option("--all", help="Also those that no longer count.")] = False,
    json: JsonOption = False,
) -> None:
    """List tokens: for whom, how often used, until when."""
    tokens = [each for each in open_ca(ca).index().tokens if all_ or each.state(time.time()) == "valid"]
    if json:
        emit_json([_told(each) for each in tokens])
        return
    rows = [
        (each.id, each.role, each.name, f"{each.used}/{each.uses}", each.state(time.time()), shown_moment(each.ends_at))
        for each in tokens
    ]
    show_table(("token", "role", "name", "used", "state", "until"), rows)


@app.command()
def revoke(
    token: Annotated[str, typer.Argument(help="Its id, as `list` shows it.")],
    ca: CaOption,
    json: JsonOption = False,
) -> None:
    """Let nobody join with a token any more; certificates got with it stay valid."""
    opened = open_ca(ca)
    with recorded(ca, "token.revoke", token):
        ended = opened.revoke_token(token)
    if json:
        emit_json(_told(ended))
    else:
        print(f"revoked token {ended.id}; {ended.used} certificate(s) were got with it")


def _address(text: str) -> Address:
    if not text:
        raise DrengineError(
            CA_REFUSED, "nobody knows where the authority is", hint="Start `drengine ca serve`, or give --authority."
        )
    return typed_address(text)


def _told(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "role": token.role,
        "name": token.name,
        "hosts": token.hosts,
        "both_ways": token.both_ways,
        "replace": token.replace,
        "uses": token.uses,
        "used": token.used,
        "state": token.state(time.time()),
        "valid_until": shown_moment(token.ends_at),
    }
