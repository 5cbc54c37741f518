"""The order in which installing, upgrading and removing go: the doctor first, then the plan, then the acts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from drengine.model.errors import DrengineError
from drengine.terminal import emit_json, note
from drengine_agent.config import AgentConfig
from drengine_agent.doctor.errors import DOCTOR_REFUSES
from drengine_agent.doctor.examine import Asked, examine, store_here
from drengine_agent.doctor.judge import Report
from drengine_agent.doctor.show import as_json, show_report
from drengine_agent.install.acts import Plan
from drengine_agent.install.errors import INSTALL_CONFLICT, INSTALL_FAILED
from drengine_agent.install.perform import perform
from drengine_agent.install.places import CACHE, CONFIG, PROGRAM, RUNTIME, STATE, look
from drengine_agent.install.plan import directories_of, plan_install, plan_uninstall
from drengine_agent.install.wanted import Said, installed_config, wanted_from

HOST = Path("/")


def install(
    said: Said | None,
    config: AgentConfig | None,
    store: Path | None,
    root: Path,
    *,
    start: bool,
    dry_run: bool,
    yes: bool,
    json: bool,
) -> None:
    """Install with a new configuration, or with the one that is there.

    Raises:
        DrengineError: DOCTOR_REFUSES, INSTALL_CONFLICT, INSTALL_FAILED, BAD_CONFIG.
    """
    _needs_root(root, dry_run)
    shown: dict[str, Any] = {}
    if root == HOST:
        report = _doctor(said, config, store, shown, quiet=json)
        if said is not None:
            said = replace(said, tracker=report.tracker)
    elif said is not None and said.tracker == "auto":
        said = replace(said, tracker="ebpf")
    wanted = wanted_from(said, config, start=start)
    plan = plan_install(wanted, look(root, directories_of(wanted)))
    _carry_out(plan, root, shown, dry_run=dry_run, yes=yes, json=json)


def upgrade(root: Path, *, dry_run: bool, yes: bool, json: bool) -> None:
    """Put this file in the installed one's place; what the kernel tracks goes on meanwhile.

    Raises:
        DrengineError: DOCTOR_REFUSES, INSTALL_CONFLICT, INSTALL_FAILED, BAD_CONFIG.
    """
    config = installed_config(root)
    if config is None or look(root, ()).record is None:
        hint = "Install it first: drengine-agent install."
        raise DrengineError(INSTALL_CONFLICT, "nothing is installed here", hint=hint)
    install(None, config, None, root, start=True, dry_run=dry_run, yes=yes, json=json)


def uninstall(root: Path, *, purge: bool, dry_run: bool, yes: bool, json: bool) -> None:
    """Take everything away again.

    Raises:
        DrengineError: INSTALL_CONFLICT, INSTALL_FAILED, or why tracking can't be removed.
    """
    _needs_root(root, dry_run)
    present = look(root, (STATE, RUNTIME, CACHE))
    if present.record is None and not {CONFIG, PROGRAM} & present.files.keys():
        note("nothing is installed here")
    plan = plan_uninstall(present, purge=purge)
    _carry_out(plan, root, {}, dry_run=dry_run, yes=yes, json=json)


def _doctor(
    said: Said | None, config: AgentConfig | None, store: Path | None, shown: dict[str, Any], *, quiet: bool
) -> Report:
    if said is not None:
        asked = Asked.of(said.volumes, said.tracker, said.state_directory, store or store_here(), said.target)
    else:
        assert config is not None
        paths: Mapping[str, Path] = {volume.name: volume.path for volume in config.volume}
        asked = Asked(paths, config.tracker, config.state_directory, store or store_here(), config.target)
    host, report = examine(asked)
    shown["doctor"] = as_json(host, report)
    if not quiet:
        show_report(report)
        print()
    if not report.ok:
        if quiet:
            emit_json({**shown, "done": False})
        failed = "; ".join(each.seen for each in report.findings if each.level == "fail")
        raise DrengineError(DOCTOR_REFUSES, f"nothing was installed: {failed}")
    return report


def _carry_out(plan: Plan, root: Path, shown: dict[str, Any], *, dry_run: bool, yes: bool, json: bool) -> None:
    shown |= {"acts": plan.shown, "notes": plan.notes, "done": not dry_run}
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


def _needs_root(root: Path, dry_run: bool) -> None:
    if root == HOST and not dry_run and os.geteuid() != 0:
        raise DrengineError(INSTALL_FAILED, "root is needed", hint="sudo; or --dry-run shows what would be done.")
