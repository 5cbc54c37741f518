"""Who types: by a token, or by the user of this host."""

from __future__ import annotations

import os
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


def acting_person(state: Path, door: Door) -> Person:
    """Who works with a state directory in this process: whose token is shown, otherwise this process's user.

    Raises:
        DrengineError: NOT_SIGNED_IN, ACCOUNTS_UNUSABLE.
    """
    token = token_for(place_of(state))
    return door.by_bearer(token) if token else door.by_user(os.getuid())
