"""`drengine login` and `logout`: the commands act as an account."""

from __future__ import annotations

import typer

from drengine.cli.acting import place_of
from drengine.cli.common import JsonOption
from drengine.cli.people.accounts import NameArgument, PasswordFileOption, configured, read_password
from drengine.cli.run_options import LookOptions
from drengine.console.client import Client
from drengine.model.clock import SystemClock
from drengine.people.door import Door
from drengine.people.logins import Login, Logins
from drengine.terminal import emit_json, human_time, note
from drengine.terminal.options import grouped

app = typer.Typer(add_completion=False)


@app.command()
@grouped
def login(
    name: NameArgument,
    password_file: PasswordFileOption = None,
    json: JsonOption = False,
    *,
    options: LookOptions,
) -> None:
    """Sign in: commands act as this account until the token is over, or `drengine logout`."""
    password = read_password(password_file)
    if options.url:
        place, told = (
            options.url,
            Client(options.url, cacert=options.cacert).ask("POST", "/login", {"name": name, "password": password}),
        )
        made = Login(name=name, token=told["token"], expires_ns=told["expires_ns"])
    else:
        config = configured(options)
        place, door = place_of(config.state), Door.of(config.state, SystemClock())
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
    state = None if options.url else configured(options).state
    found = Logins().forget(options.url if state is None else place_of(state))
    if found is None:
        note("nobody was signed in")
        return
    if state is None:
        Client(options.url, token=found.token, cacert=options.cacert).ask("POST", "/logout")
    else:
        door = Door.of(state, SystemClock())
        door.sign_out(door.by_bearer(found.token))
    print(f"{found.name} is signed out")
