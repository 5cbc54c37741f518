"""Looking for whatever can be known before anything is done: see `drengine.failover.preflight`."""

from __future__ import annotations

import msgspec

from drengine.failover.errors import NOT_READY, UNFENCED
from drengine.failover.readiness import Checked, blocking, in_order
from drengine.failover.steps.step import Case, NoSettings, PlannedStep, StepContext, StepKind, StepResult

FENCE_COMMAND = "fence-command"
"""The check that nothing could fence a source: such a run is blocked, as it is when fencing fails."""


class LookedAt(msgspec.Struct, frozen=True):
    """What was looked at, and what was found; what does not pass comes first."""

    checks: list[Checked] = []


class PreflightStep(StepKind[NoSettings, LookedAt]):
    """Passes when nothing blocks. It is about now, so it is done again whenever the run is resumed before it passed."""

    name = "preflight"
    acts = False
    estimate_seconds = 2.0

    def title(self, source: str, settings: NoSettings) -> str:
        return "look whether everything is there"

    async def act(self, step: PlannedStep[NoSettings], context: StepContext) -> StepResult[LookedAt]:
        options = msgspec.structs.replace(context.options, force=bool(context.forced_by))
        case = Case(context.mode, context.runbook, options, context.run, context.started_by, context.despite)
        checks = in_order(await context.site.preflight(context.site, case))
        found = LookedAt(checks)
        shown = "\n".join(
            line for each in checks if not each.ok for line in (f"{each.word} {each.id} - {each.message}",)
        )
        if blocked := blocking(checks):
            message = f"{len(blocked)} of {len(checks)} checks block: {', '.join(blocked)}"
            code = UNFENCED if all(each.partition(":")[0] == FENCE_COMMAND for each in blocked) else NOT_READY
            return StepResult(False, message, code.id, data=found, output=shown, retryable=False)
        left = [each.id for each in checks if not each.ok]
        message = f"{len(checks)} checks pass" if not left else f"nothing blocks; {', '.join(left)}"
        return StepResult(True, message, data=found, output=shown)


PREFLIGHT = PreflightStep()
