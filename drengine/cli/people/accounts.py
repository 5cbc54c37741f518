"""`drengine user`: the accounts of an orchestrator, changed on its host by whoever owns its state directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from drengine.audit import recorded
from drengine.cli.common import JsonOption
from drengine.cli.run_options import RegistryOptions
from drengine.config.kinds import parse_duration
from drengine.failover.config import OrchestratorConfig, load_orchestrator_config
from drengine.failover.doors import open_people
from drengine.model.clock import SystemClock
from drengine.people.accounts import Account, Accounts
from drengine.people.passwords import hash_password
from drengine.people.roles import Role
from drengine.terminal import emit_json, human_time, note, show_table
from drengine.terminal.options import grouped

app = typer.Typer(add_completion=False)

NameArgument = Annotated[str, typer.Argument(help="The account's name, as runbooks name approvers.")]
RoleOption = Annotated[
    list[Role] | None, typer.Option("--role", help="viewer, operator, approver or admin; may be repeated.")
]
PasswordFileOption = Annotated[
    Path | None,
    typer.Option("--password-file", help="File whose first line is the password; default: it is asked for."),
]


@dataclass(frozen=True)
class AccountOptions(RegistryOptions):
    """For all of these commands."""

    json: JsonOption = False


@app.command()
@grouped
def add(
    name: NameArgument,
    role: RoleOption = None,
    password_file: PasswordFileOption = None,
    no_password: Annotated[
        bool, typer.Option("--no-password", help="For tokens, and for a user of this host of the same name, only.")
    ] = False,
    *,
    options: AccountOptions,
) -> None:
    """Make an account. A user of this host of the same name has its roles, too."""
    password = "" if no_password else hash_password(read_password(password_file, confirm=True))
    with _changing(options, "user.add", name, roles=role or []) as accounts:
        made = accounts.add(name, tuple(role or ()), password)
    _tell(options, made)


@app.command()
@grouped
def remove(name: NameArgument, *, options: AccountOptions) -> None:
    """Remove an account; its tokens count no more from this moment on."""
    with _changing(options, "user.remove", name) as accounts:
        accounts.remove(name)
    _say(options, {"removed": name}, f"{name} is removed")


@app.command("list")
@grouped
def list_accounts(*, options: AccountOptions) -> None:
    """List the accounts with their roles, and the tokens that count."""
    with _accounts(options) as accounts:
        found, tokens = accounts.all(), accounts.tokens()
    if options.json:
        told = [
            {name: getattr(each, name) for name in ("id", "account", "machine", "note", "expires_ns")}
            for each in tokens
        ]
        emit_json({"accounts": [_shown(each) for each in found], "tokens": told})
        return
    if not found:
        note("there is no account yet; this user and root are admins")
        return
    rows = [(each.name, ", ".join(each.roles), "yes" if each.password else "") for each in found]
    show_table(("account", "roles", "password"), rows, title="Accounts")
    kinds = [
        (each.id, each.account, "program" if each.machine else "login", human_time(each.expires_ns)[:19], each.note)
        for each in tokens
    ]
    show_table(("token", "account", "of a", "until", "note"), kinds, title="Tokens")


@app.command()
@grouped
def password(name: NameArgument, password_file: PasswordFileOption = None, *, options: AccountOptions) -> None:
    """Set an account's password; its logins end, tokens of programs stay."""
    hashed = hash_password(read_password(password_file, confirm=True))
    with _changing(options, "user.password", name) as accounts:
        changed = accounts.change(name, password=hashed)
    _tell(options, changed)


@app.command()
@grouped
def role(
    name: NameArgument,
    roles: Annotated[list[Role] | None, typer.Argument(help="All roles that it has from now on.")] = None,
    *,
    options: AccountOptions,
) -> None:
    """Give an account other roles, at once."""
    with _changing(options, "user.role", name, roles=roles or []) as accounts:
        changed = accounts.change(name, roles=tuple(roles or ()))
    _tell(options, changed)


@app.command("create")
@grouped
def create_token(
    name: NameArgument,
    ttl: Annotated[str, typer.Option("--ttl", help="How long it counts: 12h, 90d.")] = "90d",
    comment: Annotated[str, typer.Option("--note", help="What it is for.")] = "",
    *,
    options: AccountOptions,
) -> None:
    """Make a token for a program, and print it: it is shown once."""
    try:
        seconds = parse_duration(ttl)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    with _changing(options, "token.create", name, ttl=ttl, note=comment) as accounts:
        token, text = accounts.issue(name, seconds, machine=True, note=comment)
    told = {"id": token.id, "account": name, "token": text, "expires_ns": token.expires_ns}
    _say(options, told, text)
    note(f"token {token.id} of {name} counts until {human_time(token.expires_ns)[:19]}")


@app.command("revoke")
@grouped
def revoke_token(
    id: Annotated[str, typer.Argument(help="The token's id; `drengine user list` lists them.")],
    *,
    options: AccountOptions,
) -> None:
    """End a token: it counts no more from this moment on."""
    with _changing(options, "token.revoke", id) as accounts:
        token = accounts.revoke(id)
    _say(options, {"revoked": id, "account": token.account}, f"token {id} of {token.account} counts no more")


def read_password(file: Path | None, *, confirm: bool = False) -> str:
    """A password, from a file's first line or from the terminal."""
    if file is None:
        return str(typer.prompt("password", hide_input=True, confirmation_prompt=confirm, err=True))
    try:
        return file.read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeError) as error:
        raise typer.BadParameter(f"{file} can't be read: {error}") from error


def configured(options: RegistryOptions) -> OrchestratorConfig:
    """The orchestrator's configuration; its store need not be named here."""
    unused = {} if options.config else {"store": "/"}
    return load_orchestrator_config(options.config, {**unused, **options.given()})


@contextmanager
def _accounts(options: RegistryOptions) -> Iterator[Accounts]:
    with open_people(configured(options), SystemClock()) as people:
        yield Accounts(people, SystemClock())


@contextmanager
def _changing(options: RegistryOptions, did: str, on: str, **details: Any) -> Iterator[Accounts]:
    """The accounts; that they are changed is in the audit log."""
    with _accounts(options) as accounts, recorded(configured(options).state, did, on, **details):
        yield accounts


def _shown(account: Account) -> dict[str, Any]:
    return {"name": account.name, "roles": list(account.roles), "password": bool(account.password)}


def _tell(options: AccountOptions, account: Account) -> None:
    _say(options, _shown(account), f"{account.name}: {', '.join(account.roles) or 'no role'}")


def _say(options: AccountOptions, told: dict[str, Any], line: str) -> None:
    if options.json:
        emit_json(told)
    else:
        print(line)
