"""The way home for data, first part: keep what the source wrote on its own."""

from __future__ import annotations

import msgspec

from drengine.control.messages import Verb
from drengine.failover.labels import Purpose, RunLabel
from drengine.failover.steps.agents import order_agent, refused
from drengine.failover.steps.branches import newest_point
from drengine.failover.steps.declare import declared
from drengine.failover.steps.grants import way_home
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult
from drengine.model.grants import Access
from drengine.process.threads import in_thread
from drengine.store.log.branches import BranchInfo
from drengine.terminal import human_bytes

SHIPPING_SECONDS = 6 * 86400.0
"""A bound for steps that ship data: they take as long as the difference needs. Commands may hold for a week."""


class PreserveSettings(msgspec.Struct, frozen=True):
    """Whether what the source wrote on its own is given up, because a person said so."""

    discard: bool = False


class Preserved(msgspec.Struct, frozen=True, kw_only=True):
    """What became of what the source wrote on its own.

    Attributes:
        kept: False: it was discarded.
        branch, sequence: the point that shows the disks as they were; 0: there is none.
        bytes_compared: of its volumes.
        bytes_shipped: payload bytes that went to the target.
    """

    kept: bool = True
    branch: int = 0
    sequence: int = 0
    bytes_compared: int = 0
    bytes_shipped: int = 0


class PreserveStep(StepKind[PreserveSettings, Preserved]):
    """Has the fenced source ship what its disks hold beyond the replica onto a branch of its own (rule 5).

    The agent knows whether it has: the same command gets the same answer.
    """

    name = "preserve"
    timeout_seconds = SHIPPING_SECONDS
    retries = 3
    estimate_seconds = 60.0

    def title(self, source: str, settings: PreserveSettings) -> str:
        return f"keep what {source} wrote beyond the replica, on a branch of its own"

    async def act(self, step: PlannedStep[PreserveSettings], context: StepContext) -> StepResult[Preserved]:
        if step.settings.discard:
            message = f"what {step.source} wrote on its own is discarded, as {context.started_by} said"
            return StepResult(True, message, data=Preserved(kept=False))
        branch = await in_thread(lambda: self._branch(step, context))
        order = {"branch": branch.number, "generation": branch.generation}
        if branch.closed:  # an earlier try came to an end: only its answer is asked for
            answer = await order_agent(step, context, Verb.PRESERVE, order)
        else:
            async with way_home(step, context, Access.PRESERVE, branch.number):
                answer = await order_agent(step, context, Verb.PRESERVE, order)
        if not answer.ok:
            return refused(answer)
        if not answer.result.get("sequence", 1):
            # The disks are the target's own already, from an earlier reversal: there was nothing to keep.
            await in_thread(lambda: context.site.store.close_branch(step.source, branch.number))
        shipped = int(answer.result.get("bytes_shipped", 0))
        message = f"{human_bytes(shipped)} on branch {branch.number}" if shipped else "it wrote nothing on its own"
        preserved = msgspec.convert({"kept": True, "branch": branch.number, **answer.result}, Preserved, strict=False)
        return StepResult(True, message, data=preserved)

    def _branch(self, step: PlannedStep[PreserveSettings], context: StepContext) -> BranchInfo:
        store, label = context.site.store, RunLabel(context.run, Purpose.DIVERGENT)
        found = label.branch(store, step.source)
        if found is not None:
            return found
        origin = declared(step, context).origin
        context.permit()
        return store.create_branch(newest_point(store, step.source, origin), role="divergent", label=str(label))


PRESERVE = PreserveStep()
