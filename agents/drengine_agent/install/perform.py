"""Carrying out a plan, act by act; each can be done again."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from drengine.durable import replace_durably
from drengine.model.errors import DrengineError
from drengine_agent.capture.ebpf.watch import Watch
from drengine_agent.errors import AGENT_RUNNING
from drengine_agent.install.acts import (
    Act,
    AwaitSession,
    CheckStopped,
    Enrol,
    MakeDirectory,
    MakeLink,
    Plan,
    Remove,
    RemoveEmpty,
    Run,
    TryOrders,
    TrySession,
    Untrack,
    WriteFile,
)
from drengine_agent.install.errors import INSTALL_FAILED
from drengine_agent.install.places import within
from drengine_agent.install.session import await_session, enrol_host, try_orders, try_session

COMMAND_SECONDS = 120.0


def perform(plan: Plan, root: Path, *, told: Callable[[str], None]) -> None:
    """Carry out a plan.

    Raises:
        DrengineError: INSTALL_FAILED, why there is no certificate or no session, or why tracking could not be removed.
    """
    shown = set(plan.shown)
    for act in plan.acts:
        try:
            _perform(act, root)
        except OSError as error:
            named = f"{error.filename}: " if error.filename else ""
            raise DrengineError(INSTALL_FAILED, f"{str(act).strip()}: {named}{error.strerror or error}") from error
        if str(act) in shown:
            told(str(act))


def _perform(act: Act, root: Path) -> None:
    match act:
        case Enrol():
            enrol_host(act.source, act.token, act.folder, act.role)
        case TrySession():
            try_session(act.config, act.seconds)
        case TryOrders():
            try_orders(act.config, act.seconds)
        case AwaitSession():
            await_session(act.control_socket, act.seconds)
        case MakeDirectory():
            path = within(root, act.path)
            path.mkdir(exist_ok=True)
            path.chmod(act.mode)
        case WriteFile():
            replace_durably(within(root, act.path), act.content, mode=act.mode)
        case MakeLink():
            path = within(root, act.path)
            if not path.is_symlink():
                path.symlink_to(act.target)
        case Remove():
            _remove(within(root, act.path), whole=act.whole)
        case RemoveEmpty():
            path = within(root, act.path)
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        case CheckStopped():
            _check_stopped(act.state_directory)
        case Untrack():
            Watch.detach(act.source)
        case Run():
            _run(act)


def _check_stopped(state_directory: Path) -> None:
    """The agent holds a lock on its state directory while it lives."""
    try:
        handle = os.open(state_directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DrengineError(AGENT_RUNNING, "an agent that systemd did not start is running: stop it first") from error
    finally:
        os.close(handle)


def _remove(path: Path, *, whole: bool) -> None:
    if whole and path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif not whole or path.is_symlink():
        path.unlink(missing_ok=True)


def _run(act: Run) -> None:
    done = subprocess.run(
        act.arguments, capture_output=True, text=True, errors="replace", timeout=COMMAND_SECONDS, check=False
    )
    if done.returncode and not act.may_fail:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        named = act.arguments[-1] if act.arguments[-1].endswith(".service") else "drengine-agent"
        hint = f"journalctl -u {named} says more; what was installed stays, and the same command goes on."
        raise DrengineError(INSTALL_FAILED, f"{' '.join(act.arguments)}: {said}", hint=hint)
