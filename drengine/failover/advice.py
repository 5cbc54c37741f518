"""What can be done about a run now: commands to type, with its real id. Purely."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from drengine.failover.run import COMMITTED, Outcome, RunRecord, RunState
from drengine.failover.runbook.values import Mode

FORWARD = (Mode.FAILOVER, Mode.MIGRATION)
UNDO_FAILED = "undo-failed"
NO_WAY_BACK = (UNDO_FAILED, "past-return")
"""Reasons to stop from which a run only goes on."""


@dataclass(frozen=True, slots=True)
class Advice:
    """A command, and what it is for."""

    command: str
    why: str

    @property
    def line(self) -> str:
        """As a line that can be pasted whole."""
        return f"{self.command}   # {self.why}"


def next_commands(
    run: RunRecord,
    waiting_for: Sequence[str],
    *,
    digest: str = "",
    by_hand: Sequence[str] = (),
    can_roll_back: bool,
    left_fenced: Sequence[str],
) -> list[Advice]:
    """What somebody may want to type next, the most likely first.

    Args:
        run: as it stands.
        waiting_for: steps that wait for a person.
        digest: of what an approval would be about.
        by_hand: failed steps that a person may do instead.
        can_roll_back: whether the run has done nothing that a rollback could not undo.
        left_fenced: sources that stand fenced although they are in charge.
    """
    match run.state:
        case RunState.WAITING:
            found = _waiting(run, waiting_for, digest)
        case RunState.STOPPED:
            found = _stopped(run, by_hand, can_roll_back)
        case RunState.FINISHED:
            found = _finished(run, can_roll_back, left_fenced)
        case _:
            found = _running(run)
    return list(found)


def _running(run: RunRecord) -> Iterator[Advice]:
    yield Advice(f"drengine run show {run.id}", "how far it is")
    yield Advice(f"drengine run resume {run.id}", "go on, if nobody executes it any more")
    yield Advice(f"drengine abort {run.id}", "end it where it is")


def _waiting(run: RunRecord, waiting_for: Sequence[str], digest: str) -> Iterator[Advice]:
    seen = f" --digest {digest}" if digest else ""
    for step in waiting_for:
        yield Advice(f"drengine approve {run.id} {step}{seen}", "by somebody who did not begin it")
    yield Advice(f"drengine run resume {run.id}", "then, if nobody executes it any more")
    yield Advice(f"drengine abort {run.id}", "end it where it is")


def _stopped(run: RunRecord, by_hand: Sequence[str], can_roll_back: bool) -> Iterator[Advice]:
    yield Advice(f"drengine run resume {run.id}", "when the cause is mended; what is done stays done")
    for step in by_hand:
        yield Advice(f"drengine run resume {run.id} --done {step}", "once you have done that by hand")
    if run.outcome is Outcome.BLOCKED:
        yield Advice(f"drengine run resume {run.id} --force", "only if you know that the source is off")
    if can_roll_back and run.reason not in NO_WAY_BACK:
        yield Advice(f"drengine rollback {run.id}", "undo it, and release the sources")
    if run.reason != UNDO_FAILED:
        yield Advice(f"drengine abort {run.id}", "end it where it is")


def _finished(run: RunRecord, can_roll_back: bool, left_fenced: Sequence[str]) -> Iterator[Advice]:
    is_open = run.mode in FORWARD and run.reason != COMMITTED and run.outcome is not Outcome.ROLLED_BACK
    if is_open and run.outcome is Outcome.COMPLETED:
        yield Advice(f"drengine commit {run.id}", "it stays; the way home is then a failback")
    if is_open and can_roll_back:
        yield Advice(f"drengine rollback {run.id}", _why_rollback(left_fenced))
    if run.mode is Mode.DRILL and run.outcome is not Outcome.COMPLETED:
        yield Advice(f"drengine drill {run.runbook}", "once more, when the cause is mended")
    if run.outcome is Outcome.COMPLETED and (run.reason == COMMITTED or run.mode is Mode.REPROTECT):
        yield Advice(f"drengine failback {run.runbook}", "the way home")
    yield Advice(f"drengine reports export {run.id} --output report.html", "the report")


def _why_rollback(left_fenced: Sequence[str]) -> str:
    return f"release {' and '.join(left_fenced)}" if left_fenced else "undo it: the sources are in charge again"
