"""`drengine grant`: who may use a branch or point over NBD, or come home, beside what runs allow by themselves."""

from __future__ import annotations

import secrets
from typing import Annotated

import typer

from drengine.audit import recorded
from drengine.cli.common import JsonOption, SourceOption, StoreOption, open_store, pick_point, pick_source
from drengine.config import parse_duration
from drengine.identity.names import Role
from drengine.model.errors import BAD_NAME, DrengineError
from drengine.model.grants import SECRET_MARK, Access, Grant
from drengine.model.names import check_name
from drengine.target.errors import GRANT_MISSING
from drengine.terminal import emit_json, human_time, note, show_table

app = typer.Typer(add_completion=False)

SECRET_BYTES = 16


@app.command("list")
def show(store: StoreOption, json: JsonOption = False) -> None:
    """List the grants that live, oldest first."""
    with open_store(store, read_only=True) as opened:
        grants = opened.grants.living()
    if json:
        emit_json([_told(each) for each in grants])
        return
    show_table(
        ("id", "source", "what", "may", "who", "for", "until"),
        [
            (
                each.id,
                each.source,
                _place(each),
                str(each.access),
                each.holder or "whoever has the capability",
                each.instance,
                human_time(each.expires_ns) if each.expires_ns else "taken back",
            )
            for each in grants
        ],
        title="Grants",
    )


@app.command()
def give(
    store: StoreOption,
    point: Annotated[str | None, typer.Argument(help="A point's id, `latest`, `before:TIME`, or its label.")] = None,
    branch: Annotated[int | None, typer.Option("--branch", min=1, help="This branch instead of a point.")] = None,
    source: SourceOption = None,
    to: Annotated[
        str | None, typer.Option("--to", help="Whose certificate opens it: host/NAME, or agent/SOURCE to come home.")
    ] = None,
    access: Annotated[
        str | None,
        typer.Option("--access", help="read, write, preserve or reverse; by default read a point, write a branch."),
    ] = None,
    seconds: Annotated[str, typer.Option("--for", help="How long, for example 8h.")] = "1h",
    json: JsonOption = False,
) -> None:
    """Allow a party something until the time is over, or, without --to, whoever shows the capability that is printed.

    A branch for which nothing is named is the one that the source's generation writes.
    """
    kind = access or ("read" if point else "write")
    if kind not in set(Access):
        raise typer.BadParameter(f"{kind!r} is none of {', '.join(Access)}", param_hint="--access")
    if point and (branch is not None or kind != "read"):
        raise typer.BadParameter("a point is read, and has no other branch", param_hint="POINT")
    holder, secret = (_holder(to), "") if to else ("", secrets.token_hex(SECRET_BYTES))
    with open_store(store) as opened:
        name = pick_source(opened, source)
        number, sequence = branch or opened.source(name).active_branch, 0
        if point:
            found = pick_point(opened, name, point)
            number, sequence = found.branch, found.sequence
        place = f"{name} {number}-{sequence}" if sequence else f"{name} {number}"
        with recorded(store, "grant.give", place, access=kind, holder=holder or "a capability", seconds=seconds):
            given = opened.grants.give(
                name,
                number,
                Access(kind),
                holder=holder,
                secret=secret,
                sequence=sequence,
                instance="by hand",
                seconds=_seconds(seconds),
            )
    shown = f"{name}/VOLUME{f'@{number}-{sequence}' if sequence else f'#{number}'}"
    shown += f"{SECRET_MARK}{secret}" if secret else ""
    if json:
        emit_json({**_told(given), "export": shown})
        return
    print(f"{given.id}: {given.holder or 'whoever has the capability'} may {kind} {_place(given)} of {name}")
    if given.access in ("read", "write"):
        print(f"export: {shown}")
    if secret:
        note("whoever sees this name may use it: nothing prints it again")


@app.command()
def take(id: Annotated[str, typer.Argument(help="Its id.")], store: StoreOption, json: JsonOption = False) -> None:
    """Take a grant back; what is open by it ends within seconds."""
    with open_store(store) as opened, recorded(store, "grant.take", id[:40]):
        gone = opened.grants.take(lambda grant: grant.id == id)
    if not gone:
        raise DrengineError(GRANT_MISSING, f"no grant {id[:40]!r} lives")
    if json:
        emit_json([_told(each) for each in gone])
    else:
        print(f"{id} is taken back")


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--for") from error


def _holder(text: str) -> str:
    """
    Raises:
        DrengineError: BAD_NAME.
    """
    role, _, name = text.partition("/")
    if role not in (Role.HOST, Role.AGENT):
        raise DrengineError(BAD_NAME, f"{text[:80]!r} names no host/NAME and no agent/SOURCE")
    return f"{role}/{check_name(name, what=role)}"


def _place(grant: Grant) -> str:
    return f"point {grant.branch}-{grant.sequence}" if grant.sequence else f"branch {grant.branch}"


def _told(grant: Grant) -> dict[str, object]:
    return {
        "id": grant.id,
        "source": grant.source,
        "branch": grant.branch,
        "sequence": grant.sequence,
        "access": str(grant.access),
        "holder": grant.holder,
        "instance": grant.instance,
        "issued_ns": grant.issued_ns,
        "expires_ns": grant.expires_ns,
    }
