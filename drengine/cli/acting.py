"""Who types: by a token, or by the user of this host."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from drengine.people.logins import Logins

if TYPE_CHECKING:
    from drengine.people.door import Door
    from drengine.people.roles import Person

TOKEN_VARIABLE = "DRENGINE_TOKEN"


def place_of(state: Path) -> str:
    """How logins call an orchestrator on this host."""
    return f"state:{state.absolute()}"


def token_for(place: str) -> str:
    """The token to show there; empty for none."""
    if token := os.environ.get(TOKEN_VARIABLE, ""):
        return token
    login = Logins().find(place)
    return login.token if login else ""


def running_door(path: Path) -> str:
    """Address of the orchestrator that serves this socket; empty when none does, or this user does not reach it."""
    folder = -1
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            probe.connect(f"/proc/self/fd/{folder}/{path.name}")
        except OSError:
            return ""
        finally:
            if folder >= 0:
                os.close(folder)
    return f"unix:{path}"


def acting_person(state: Path, door: Door) -> Person:
    """Who works with a state directory in this process: whose token is shown, otherwise this process's user.

    Raises:
        DrengineError: NOT_SIGNED_IN, ACCOUNTS_UNUSABLE.
    """
    token = token_for(place_of(state))
    return door.by_bearer(token) if token else door.by_user(os.getuid())
