"""How a run may end or be refused, as kinds with exit codes 106 to 112 and 220 to 222. 0 means: completed."""

from __future__ import annotations

import re

from drengine.model.errors import DrengineError, error_kind
from drengine.model.homes import NEW_HOME_UNFIT

RUN_FAILED = error_kind(
    "run-failed",
    106,
    "A run failed, or was rolled back because it failed.",
    "`drengine run show RUN` says which step and why. If it stopped: `drengine run resume RUN` or "
    "`drengine rollback RUN`; if it is finished, begin a new one.",
)
UNFENCED = error_kind(
    "unfenced",
    107,
    "A source could not be fenced: it may still be writing, so nothing was promoted.",
    "Switch it off or give the runbook a fence command, then `drengine run resume RUN`; --force goes on without it, "
    "and the report says so in its first lines.",
)
NOT_READY = error_kind(
    "not-ready",
    225,
    "A check before a run does not pass that the run would need; nothing was done.",
    "`drengine ready RUNBOOK` lists what was looked at, with what to do about each. In a disaster, where a check does "
    "not matter: --despite CHECK.",
)
UNKNOWN_CHECK = error_kind(
    "unknown-check",
    226,
    "There is no such check, or no run goes on past it.",
    "`drengine ready RUNBOOK` lists the checks by their ids.",
)
RUN_WAITING = error_kind(
    "run-waiting",
    108,
    "A run waits for a person's approval and --no-wait was given.",
    "Somebody who may, and did not begin it: `drengine approve RUN`; then `drengine run resume RUN`.",
)
RUN_ABORTED = error_kind(
    "run-aborted",
    109,
    "A run was aborted by a person.",
    "`drengine run show RUN` says how far it came; `drengine rollback RUN` undoes a failover.",
)
RUN_STATE = error_kind(
    "run-state",
    110,
    "The run, or the source, is not in a state in which this can be done.",
    "The message says what it is in; `drengine runs` lists the runs, `drengine branches` who writes a source.",
)
BAD_APPROVAL = error_kind(
    "bad-approval",
    111,
    "An approval by somebody who may not give it, or for a step that does not ask for one.",
    "`drengine run show RUN` lists what is waiting and who may approve.",
)
SELF_APPROVAL = error_kind(
    "self-approval",
    186,
    "Nobody approves a run that he began himself.",
    "Ask another approver; `drengine run show RUN` says who may. A runbook can allow it: docs/runbooks.md.",
)
APPROVAL_STALE = error_kind(
    "approval-stale",
    187,
    "The approval is about another point, plan or runbook than what would be carried out now.",
    "Look again with `drengine run show RUN`, then approve what is there now.",
)
APPROVAL_NEEDED = error_kind(
    "approval-needed",
    188,
    "The runbook demands that somebody else approves before this run is forced.",
    "`drengine approve RUN approve-force` by somebody whom the runbook names in `force_by`; then force it again.",
)
WOULD_LOSE = error_kind(
    "would-lose",
    112,
    "This would lose what was written on the recovered side.",
    "Fail back instead to keep it, or repeat the command with --yes; the branch stays until its retention ends.",
)
FAILED_OVER_ALREADY = error_kind(
    "failed-over-already",
    220,
    "The runbook's sources run here already: another failover would stop what runs and start it again.",
    "`drengine failback RUNBOOK` leads home. If you mean to fail over once more: the same command with --again.",
)
NOT_STARTED = error_kind(
    "not-started",
    221,
    "The sources are in charge again, and nothing was started there.",
    "Start their workloads now. Next time the run does it: give each source `services` or `start`.",
)
RUNBOOK_UNFIT = error_kind(
    "runbook-unfit",
    222,
    "The changed runbook does not fit what the run has done already.",
    "Leave what is done as it was, or `drengine rollback RUN` and begin a new run.",
)
BAD_ONTO = error_kind(
    "bad-onto",
    NEW_HOME_UNFIT,
    "What was said about the new home of a source makes no sense.",
    "`--onto HOST`, or `--onto SOURCE=HOST` where the runbook has several; `--disk VOLUME=DISK` for its disks.",
)
_PLACEHOLDER = re.compile(r"\bRUN\b")


def naming_run(error: DrengineError, run: str) -> DrengineError:
    """The same error, with a hint that names this run where it says RUN, so that it can be typed as it stands."""
    return DrengineError(error.kind, error.message, hint=_PLACEHOLDER.sub(run, error.hint))
