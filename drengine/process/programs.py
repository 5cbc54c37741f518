"""Whether a program could be started: looked up as `run_command` would, without starting it."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
from pathlib import Path

from drengine.process.environment import command_environment

_LINE_BYTES_MAX = 256


def program_fault(name: str, *, user: str = "") -> str:
    """Why a program can't be started by us, or by us as `user`; empty: it can.

    It is sought on the PATH that commands inherit. A script's interpreter is looked for as well.
    """
    if user:
        try:
            pwd.getpwnam(user)
        except KeyError:
            return f"there is no user {user}"
    path = command_environment()["PATH"]
    found = shutil.which(name, mode=os.F_OK, path=path)
    if found is None:
        return f"{name} is not there" if "/" in name else f"{name} is not on the path {path}"
    runnable = shutil.which(name, path=path)
    if runnable is None or (user and not _may_execute(Path(runnable), user)):
        return f"{found} is not executable" + (f" for {user}" if user and runnable else "")
    return _interpreter_fault(runnable)


def _interpreter_fault(script: str) -> str:
    try:
        with open(script, "rb") as file:  # noqa: PTH123 - a path that `which` gave
            line = file.readline(_LINE_BYTES_MAX)
    except OSError:  # it may be executed and not read
        return ""
    words = line[2:].split() if line.startswith(b"#!") else []
    interpreter = os.fsdecode(words[0]) if words else ""
    return f"{script} wants {interpreter}, which is not there" if interpreter and not shutil.which(interpreter) else ""


def _may_execute(program: Path, user: str) -> bool:
    """Whether the file and the directories that lead to it let a user execute them."""
    known = pwd.getpwnam(user)
    groups = {known.pw_gid, *os.getgrouplist(user, known.pw_gid)}
    program = program.resolve()
    return all(_is_open_to(each.stat(), known.pw_uid, groups) for each in (program, *program.parents))


def _is_open_to(found: os.stat_result, uid: int, groups: set[int]) -> bool:
    if uid == 0:
        return stat.S_ISDIR(found.st_mode) or bool(found.st_mode & 0o111)
    if found.st_uid == uid:
        return bool(found.st_mode & stat.S_IXUSR)
    return bool(found.st_mode & (stat.S_IXGRP if found.st_gid in groups else stat.S_IXOTH))
