"""`drengine login` and `logout`: the commands act as an account."""

from __future__ import annotations

import typer

from drengine.cli.acting import place_of
from drengine.cli.common import JsonOption
from drengine.cli.people.accounts import NameArgument, PasswordFileOption, configured, read_password
from drengine.cli.run_options import RegistryOptions
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
    options: RegistryOptions,
) -> None:
    """Sign in: commands act as this account until the token is over, or `drengine logout`."""
    config = configured(options)
    door = Door.of(config.state, SystemClock())
    token, text = door.sign_in(name, read_password(password_file), "unix", config.login_ttl)
    made = Login(name=name, token=text, expires_ns=token.expires_ns)
    Logins().keep(place_of(config.state), made)
    if json:
        emit_json({"name": name, "expires_ns": made.expires_ns})
    else:
        print(f"signed in as {name} until {human_time(made.expires_ns)[:19]}")


@app.command()
@grouped
def logout(*, options: RegistryOptions) -> None:
    """Sign out: the token counts no more, and commands act as the user of this host again."""
    config = configured(options)
    found = Logins().forget(place_of(config.state))
    if found is None:
        note("nobody was signed in")
        return
    door = Door.of(config.state, SystemClock())
    door.sign_out(door.by_bearer(found.token))
    print(f"{found.name} is signed out")
