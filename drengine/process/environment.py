"""What a command that is run for us inherits of our environment: little, so that no secret of ours reaches it."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from typing import Any

INHERITED = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR")
PASS_VARIABLE = "DRENGINE_PASS_ENVIRONMENT"
"""Names more variables that commands inherit, with spaces between; it is one of them, for what they run for us."""


def passed_on() -> list[str]:
    """Names of the variables that somebody chose to hand to commands."""
    return os.environ.get(PASS_VARIABLE, "").split()


def command_environment(added: Mapping[str, str] | None = None) -> dict[str, str]:
    """The whole environment of a command: what it inherits, and what is added for it."""
    inherited = {name: os.environ[name] for name in (*INHERITED, PASS_VARIABLE, *passed_on()) if name in os.environ}
    return {"PATH": os.defpath, **inherited, **(added or {})}


def as_user(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Arguments for Popen, and variables, with which a command runs as another user; nothing for "".

    Raises:
        ValueError: there is no such user.
    """
    if not name:
        return {}, {}
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise ValueError(f"there is no user {name!r}") from None
    groups = os.getgrouplist(name, found.pw_gid)
    variables = {"HOME": found.pw_dir, "USER": name, "LOGNAME": name}
    return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": groups}, variables
