"""`drengine login` and `logout`: the commands act as an account."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from drengine.cli.acting import place_of
from drengine.cli.common import JsonOption
from drengine.cli.people.accounts import PasswordFileOption, configured, read_password
from drengine.cli.people.browser import sign_in
from drengine.cli.run_options import LookOptions
from drengine.console.client import Client
from drengine.failover.config import OrchestratorConfig
from drengine.failover.doors import open_people
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.people.door import Door
from drengine.people.errors import NOT_SIGNED_IN
from drengine.people.logins import Login, Logins
from drengine.terminal import emit_json, human_time, note
from drengine.terminal.options import grouped

app = typer.Typer(add_completion=False)


@app.command()
@grouped
def login(
    name: Annotated[str, typer.Argument(help="The account's name; not needed with --browser.")] = "",
    password_file: PasswordFileOption = None,
    browser: Annotated[
        bool, typer.Option("--browser", help="Sign in at the site's OpenID Connect provider, with a browser.")
    ] = False,
    json: JsonOption = False,
    *,
    options: LookOptions,
) -> None:
    """Sign in: commands act as this account until the token is over, or `drengine logout`."""
    if not browser and not name:
        raise typer.BadParameter("name an account, or sign in with --browser")
    password = "" if browser else read_password(password_file)
    if browser:
        place, made = _by_browser(options)
        name = made.name
    elif options.url:
        place, told = (
            options.url,
            Client(options.url, cacert=options.cacert).ask("POST", "/login", {"name": name, "password": password}),
        )
        made = Login(name=name, token=told["token"], expires_ns=told["expires_ns"])
    else:
        config = configured(options)
        place = place_of(config.state)
        with _door(config) as door:
            token, text = door.sign_in(name, password, "unix", config.login_ttl)
        made = Login(name=name, token=text, expires_ns=token.expires_ns)
    Logins().keep(place, made)
    if json:
        emit_json({"name": name, "expires_ns": made.expires_ns})
    else:
        print(f"signed in as {name} until {human_time(made.expires_ns)[:19]}")


@app.command()
@grouped
def logout(*, options: LookOptions) -> None:
    """Sign out: the token counts no more, and commands act as the user of this host again."""
    config = None if options.url else configured(options)
    found = Logins().forget(options.url if config is None else place_of(config.state))
    if found is None:
        note("nobody was signed in")
        return
    if config is None:
        Client(options.url, token=found.token, cacert=options.cacert).ask("POST", "/logout")
    else:
        with _door(config) as door:
            door.sign_out(door.by_bearer(found.token))
    print(f"{found.name} is signed out")


@contextmanager
def _door(config: OrchestratorConfig) -> Iterator[Door]:
    with open_people(config, SystemClock()) as people:
        yield Door.of(config.state, SystemClock(), config.oidc, people)


def _by_browser(options: LookOptions) -> tuple[str, Login]:
    """The place, and a login there with the provider's token."""
    if options.url:
        place, ways = options.url, Client(options.url, cacert=options.cacert).ask("GET", "/login")
        issuer, client, cacert = ways["issuer"], ways["client"], options.cacert
    else:
        config = configured(options)
        place, issuer, client, cacert = (
            place_of(config.state),
            config.oidc.issuer,
            config.oidc.client,
            config.oidc.cacert,
        )
    if not issuer:
        raise DrengineError(NOT_SIGNED_IN, "this orchestrator believes no provider", hint="Configure [oidc] there.")
    token, seconds = sign_in(issuer, client, cacert, lambda url: note(f"open {url}"))
    if options.url:
        who = str(Client(options.url, token=token, cacert=options.cacert).ask("GET", "/me")["name"])
    else:
        with _door(config) as door:
            who = door.by_bearer(token).name
    return place, Login(name=who, token=token, expires_ns=SystemClock().now_ns() + int(seconds * 1e9))
