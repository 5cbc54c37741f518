"""The order in which installing, upgrading and removing go: the doctor first, then the plan, then the acts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import typer

from drengine.identity.tokens import Invitation
from drengine.model.errors import DrengineError
from drengine.terminal import emit_json, note
from drengine_agent.config import AgentConfig, parse_config
from drengine_agent.doctor.errors import DOCTOR_REFUSES
from drengine_agent.doctor.examine import AUTO, Asked, examine
from drengine_agent.doctor.judge import Report
from drengine_agent.doctor.parties import is_running
from drengine_agent.doctor.show import as_json, show_report
from drengine_agent.install.acts import Act, AwaitSession, Enrol, Plan, TrySession
from drengine_agent.install.configuration import configuration_text
from drengine_agent.install.errors import INSTALL_CONFLICT, INSTALL_FAILED
from drengine_agent.install.perform import perform
from drengine_agent.install.places import CACHE, CONFIG, IDENTITY, RUNTIME, STATE, look
from drengine_agent.install.plan import directories_of, plan_install, plan_uninstall
from drengine_agent.install.session import has_certificate
from drengine_agent.install.wanted import default_state_directory, wanted_from
from drengine_agent.install.wishes import Wishes, installed_values
from drengine_agent.program import PROGRAM

TRY_SECONDS = 15.0
"""How long a target is waited for before anything is installed."""
HOST = Path("/")


def install(
    wishes: Wishes,
    store: Path | None,
    root: Path,
    *,
    start: bool,
    wait_seconds: float,
    dry_run: bool,
    yes: bool,
    json: bool,
) -> None:
    """Install, or change what was installed; without wishes the configuration stays as it is.

    With `wait_seconds` nothing is installed whose session can't work, and it ends well only with a session.

    Raises:
        DrengineError: DOCTOR_REFUSES, INSTALL_CONFLICT, INSTALL_FAILED, BAD_CONFIG, SESSION_MISSING, and others of
            what is tried.
    """
    needs_root(root, dry_run)
    before = installed_values(root)
    here = root == HOST
    enrolled = here and has_certificate(IDENTITY, wishes.source or str(before.get("source", "")))
    enrols = here and bool(wishes.token) and not enrolled
    values = wishes.values(before, is_enrolled=enrols or enrolled)
    if not before and "state_directory" not in values:
        state = default_state_directory({each["name"]: Path(each["path"]) for each in values["volume"]}, root)
        values |= {"state_directory": str(state)} if state != STATE else {}
    tracker = values.get("tracker", AUTO if not before else "nbd")
    if tracker == AUTO:
        values["tracker"] = "ebpf"
    config = parse_config(values)
    shown: dict[str, Any] = {}
    if here:
        token = Invitation.parse(wishes.token) if enrols else None
        report = _doctor(config, tracker, token, store, shown, quiet=json)
        if report.tracker != values.get("tracker", "nbd"):
            values["tracker"] = report.tracker
    text = None if values == before else configuration_text(values).encode()
    first = _tried_first(config, wishes.token if enrols else "", text, wait_seconds if here else 0)
    last = (AwaitSession(config.control_socket, wait_seconds),) if wait_seconds else ()
    wanted = wanted_from(parse_config(values), text, start=start, first=first, last=last)
    plan = plan_install(wanted, look(root, directories_of(wanted)))
    carry_out(plan, root, shown, dry_run=dry_run, yes=yes, json=json)


def _tried_first(config: AgentConfig, token: str, text: bytes | None, wait_seconds: float) -> tuple[Act, ...]:
    """What is done before anything is written. A session is tried where no agent runs: to a target a second one of
    the same source is an intruder."""
    acts: list[Act] = [Enrol(config.source, token, IDENTITY)] if token else []
    if text is not None and wait_seconds and not is_running(config.state_directory):
        acts.append(TrySession(text, min(wait_seconds, TRY_SECONDS)))
    return tuple(acts)


def upgrade(root: Path, *, dry_run: bool, yes: bool, json: bool) -> None:
    """Put this file in the installed one's place; what the kernel tracks goes on meanwhile.

    Raises:
        DrengineError: DOCTOR_REFUSES, INSTALL_CONFLICT, INSTALL_FAILED, BAD_CONFIG.
    """
    if not installed_values(root) or look(root, ()).record is None:
        hint = (
            "Install it first: `drengine-agent install`; of a recovery host, `drengine-agent standby install` upgrades."
        )
        raise DrengineError(INSTALL_CONFLICT, "nothing is installed here", hint=hint)
    install(Wishes(), None, root, start=True, wait_seconds=0, dry_run=dry_run, yes=yes, json=json)


def uninstall(root: Path, *, purge: bool, dry_run: bool, yes: bool, json: bool) -> None:
    """Take everything away again.

    Raises:
        DrengineError: INSTALL_CONFLICT, INSTALL_FAILED, or why tracking can't be removed.
    """
    needs_root(root, dry_run)
    present = look(root, (STATE, IDENTITY, RUNTIME, CACHE))
    if present.record is None and not {CONFIG, PROGRAM} & present.files.keys():
        note("nothing is installed here")
    plan = plan_uninstall(present, purge=purge)
    carry_out(plan, root, {}, dry_run=dry_run, yes=yes, json=json)


def _doctor(
    config: AgentConfig,
    tracker: str,
    token: Invitation | None,
    store: Path | None,
    shown: dict[str, Any],
    *,
    quiet: bool,
) -> Report:
    host, report = examine(Asked.of(config, tracker=tracker, store=store, token=token))
    shown["doctor"] = as_json(host, report)
    if not quiet:
        show_report(report)
        print()
    if not report.ok:
        if quiet:
            emit_json({**shown, "done": False})
        failed = [each for each in report.findings if each.level == "fail"]
        what = "; ".join(each.seen for each in failed)
        raise DrengineError(DOCTOR_REFUSES, f"nothing was installed: {what}", hint=failed[0].hint or None)
    return report


def carry_out(plan: Plan, root: Path, shown: dict[str, Any], *, dry_run: bool, yes: bool, json: bool) -> None:
    """Show a plan, ask, and do it."""
    shown |= {"acts": plan.shown, "notes": plan.notes, "changed": plan.changes, "done": not dry_run}
    if dry_run or not yes:
        _show_plan(plan, quiet=json)
    if not dry_run:
        if not yes and not json and plan.acts and os.isatty(0):
            typer.confirm("Go on?", default=True, abort=True, err=True)
        perform(plan, root, told=(lambda line: None) if json or not yes else print)
    if json:
        emit_json(shown)
    elif yes and not dry_run:
        for each in plan.notes:
            print(f"note    {each}")


def _show_plan(plan: Plan, *, quiet: bool) -> None:
    if quiet:
        return
    for line in plan.shown or ["nothing to do"]:
        print(line)
    for each in plan.notes:
        print(f"note    {each}")


def needs_root(root: Path, dry_run: bool) -> None:
    """This host is changed by root alone.

    Raises:
        DrengineError: INSTALL_FAILED.
    """
    if root == HOST and not dry_run and os.geteuid() != 0:
        raise DrengineError(INSTALL_FAILED, "root is needed", hint="sudo; or --dry-run shows what would be done.")
