"""`drengine fleet upgrade`: agents' new version, ring by ring."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from drengine.cli.common import JsonOption
from drengine.cli.fleet.desk import Desk, carry_rollout
from drengine.cli.run_options import LookOptions
from drengine.config.kinds import parse_duration
from drengine.enrolment.handout import agent_in
from drengine.fleet.answers import AgentAnswer, RolloutAnswer
from drengine.fleet.errors import DOWNGRADE, ROLLOUT_STOPPED
from drengine.fleet.rings import REST
from drengine.model.errors import DrengineError
from drengine.terminal import emit_json, human_duration, is_terminal, note, show_table
from drengine.terminal.options import grouped

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Wanted:
    """What is wanted of an upgrade."""

    to: Annotated[
        str, typer.Option("--to", help="The new one-file agent, or its version: what `drengine ca serve` hands out.")
    ] = ""
    rings: Annotated[
        str,
        typer.Option(
            "--rings",
            help="In order, with commas: a ring of the policy, a pattern, a number, a share such as 10%, rest.",
        ),
    ] = f"1,10%,{REST}"
    limit: Annotated[str, typer.Option("--limit", help="How long an agent may take to be back and well.")] = "10m"
    at_once: Annotated[int, typer.Option("--at-once", min=1, max=100, help="Agents of a ring at the same time.")] = 4
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say who would be upgraded when.")] = False
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the newest upgrade, and with who was sick.")] = (
        False
    )
    stop: Annotated[bool, typer.Option("--stop", help="Order no more agents; those that were ordered go on.")] = False
    status: Annotated[bool, typer.Option("--status", help="Only show the newest upgrade.")] = False
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Also to an older version.")] = False

    @property
    def is_carried(self) -> bool:
        """Something goes on, that is seen to its end."""
        return not (self.dry_run or self.stop or self.status)

    def order(self, desk: Desk, *, downgrade: bool) -> RolloutAnswer:
        """Ask or order it."""
        if self.status:
            return desk.rollout()
        if self.resume or self.stop:
            return desk.resume_rollout() if self.resume else desk.stop_rollout()
        file = agent_in(Path(self.to))
        version, sha256 = (file.version, file.sha256) if file else (self.to, "")
        return desk.upgrade(
            version,
            sha256,
            [each.strip() for each in self.rings.split(",") if each.strip()],
            limit_seconds=_seconds(self.limit),
            at_once=self.at_once,
            dry_run=self.dry_run,
            downgrade=downgrade,
        )


@app.command()
@grouped
def upgrade(wanted: Wanted, json: JsonOption = False, *, options: LookOptions) -> None:
    """Have agents fetch and install a new version, ring by ring; it stops at one that is not well.

    Sick is who is not back in time, not CONTINUOUS, tracks in another way, or does not tell the new version.
    """
    if sum((wanted.resume, wanted.stop, wanted.status, bool(wanted.to))) != 1:
        raise typer.BadParameter("one of --to, --resume, --stop and --status is needed")
    _seconds(wanted.limit)

    def order(desk: Desk) -> RolloutAnswer:
        try:
            return wanted.order(desk, downgrade=wanted.yes)
        except DrengineError as error:
            if error.kind is not DOWNGRADE or json or not is_terminal():
                raise
            typer.confirm(f"{error.message}. Go on?", abort=True, err=True)
            return wanted.order(desk, downgrade=True)

    watch = (lambda _: None) if json else _Told().tell
    ended = carry_rollout(options, order, carry=wanted.is_carried, watch=watch)
    if json:
        emit_json(ended)
    else:
        _show(ended)
    if wanted.is_carried and ended.state == "stopped":
        error = DrengineError(ROLLOUT_STOPPED, ended.message or "somebody stopped it")
        raise typer.Exit(error.kind.exit_code) if json else error


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


class _Told:
    """One line for each agent that has come further."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def tell(self, rollout: RolloutAnswer) -> None:
        """What is new since it was told last."""
        for ring in rollout.rings:
            for each in ring.agents:
                if each.phase != "waiting" and self._seen.get(each.source) != each.phase:
                    self._seen[each.source] = each.phase
                    note(f"{ring.name}: {each.source} {each.phase}{f': {each.message}' if each.message else ''}")


def _show(rollout: RolloutAnswer) -> None:
    rows = [_row(ring.name, each) for ring in rollout.rings for each in ring.agents]
    show_table(("ring", "source", "phase", "before", "took", "why"), rows, title=f"Upgrade to {rollout.version}")
    print(f"{rollout.rollout}: {rollout.state}" if rollout.rollout else "nothing was ordered")
    if left := [each.source for ring in rollout.rings for each in ring.agents if each.phase == "skipped"]:
        note(f"left out: {', '.join(left)}")
    if rollout.is_left:
        note("nobody carries it out now; the orchestrator does within seconds where it runs")
    if rollout.is_left or rollout.state == "stopped" or (rollout.rollout and left):
        note("drengine fleet upgrade --resume goes on, and tries again who was sick or left out")


def _row(ring: str, each: AgentAnswer) -> tuple[str, ...]:
    took = human_duration(each.seconds) if each.seconds is not None else ""
    return ring, each.source, each.phase, each.before, took, each.message
