"""The way home for data: keep what the source wrote on its own, then make its disks equal to the recovered side's."""

from __future__ import annotations

from typing import Any, ClassVar

from drengine.control.messages import Verb
from drengine.failover.steps.branches import newest_point
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult, branch_named
from drengine.failover.steps.telling import agent_generation, refused, tell
from drengine.failover.steps.threads import in_thread
from drengine.store.log.branches import BranchInfo
from drengine.terminal import human_bytes

ROUNDS_MAX = 5
SMALL_BYTES = 64 << 20
"""A round that shipped no more than this leaves little for the switch."""


def divergent_label(run: str) -> str:
    """What the branch is called that keeps what a source wrote beyond the replica."""
    return f"run:{run}:divergent"


class PreserveStep:
    """Has the fenced source ship what its disks hold beyond the replica onto a branch of its own (rule 5)."""

    kind: ClassVar[StepKind] = StepKind.PRESERVE

    async def check(self, step: PlannedStep, context: StepContext) -> StepResult | None:
        """The agent knows: the same command gets the same answer."""
        return None

    async def act(self, step: PlannedStep, context: StepContext) -> StepResult:
        """See StepHandler."""
        if step.settings["discard"]:
            by = context.options.get("by", "")
            return StepResult(
                True, f"what {step.source} wrote on its own is discarded, as {by} said", data={"kept": False}
            )
        branch = await in_thread(lambda: self._branch(step, context))
        answer = await tell(
            step,
            context,
            Verb.PRESERVE,
            {"branch": branch.number, "generation": branch.generation},
            generation=agent_generation(step, context),
            timeout_seconds=step.timeout_seconds,
        )
        if not answer.ok:
            return refused(answer)
        if not answer.result.get("sequence", 1):
            # The disks are the target's own already, from an earlier reversal: there was nothing to keep.
            await in_thread(lambda: context.site.store.close_branch(step.source, branch.number))
        shipped = int(answer.result.get("bytes_shipped", 0))
        told = f"{human_bytes(shipped)} on branch {branch.number}" if shipped else "it wrote nothing on its own"
        return StepResult(True, told, data={"kept": True, "branch": branch.number, **answer.result})

    def _branch(self, step: PlannedStep, context: StepContext) -> BranchInfo:
        store, label = context.site.store, divergent_label(context.run)
        found = branch_named(store, step.source, label)
        if found is not None:
            return found
        origin = context.results["declare"]["sources"][step.source]["origin"]
        context.permit()
        return store.create_branch(newest_point(store, step.source, origin), role="divergent", label=label)


class ReverseStep:
    """Ships the difference while the recovered side goes on writing, until little is left."""

    kind: ClassVar[StepKind] = StepKind.REVERSE

    async def check(self, step: PlannedStep, context: StepContext) -> StepResult | None:
        """See PreserveStep."""
        return None

    async def act(self, step: PlannedStep, context: StepContext) -> StepResult:
        """See StepHandler."""
        number = context.results["declare"]["sources"][step.source]["branch"]
        shipped = compared = 0
        unmodified = True
        for round in range(1, ROUNDS_MAX + 1):
            point = await in_thread(lambda: newest_point(context.site.store, step.source, number))
            answer = await tell(
                step,
                context,
                Verb.REVERSE,
                {"branch": point.branch, "point": point.id, "force": bool(context.options.get("discard_divergent"))},
                generation=agent_generation(step, context),
                timeout_seconds=step.timeout_seconds,
                part=f".{round}",
            )
            if not answer.ok:
                return refused(answer)
            latest = int(answer.result.get("bytes_shipped", 0))
            shipped, compared = shipped + latest, compared + int(answer.result.get("bytes_compared", 0))
            unmodified = unmodified and bool(answer.result.get("unmodified"))
            if latest <= SMALL_BYTES:
                break
        data = {"point": point.id, "rounds": round, "bytes_shipped": shipped, "bytes_compared": compared}
        return StepResult(True, _told(step, shipped, unmodified), data={**data, "unmodified": unmodified})


class ReverseLastStep:
    """Ships what was written until the recovered side stopped: then both sides are equal, hash by hash."""

    kind: ClassVar[StepKind] = StepKind.REVERSE_LAST

    async def check(self, step: PlannedStep, context: StepContext) -> StepResult | None:
        """See PreserveStep."""
        return None

    async def act(self, step: PlannedStep, context: StepContext) -> StepResult:
        """See StepHandler."""
        id = context.results[f"quiesce-recovered:{step.source}"]["point"]
        answer = await tell(
            step,
            context,
            Verb.REVERSE,
            {"branch": context.results["declare"]["sources"][step.source]["branch"], "point": id},
            generation=agent_generation(step, context),
            timeout_seconds=step.timeout_seconds,
        )
        if not answer.ok:
            return refused(answer)
        data: dict[str, Any] = {**answer.result, "point": id}
        told = _told(step, int(answer.result.get("bytes_shipped", 0)), bool(answer.result.get("unmodified")))
        return StepResult(True, told, data=data)


def _told(step: PlannedStep, shipped: int, unmodified: bool) -> str:
    return f"{step.source} was not modified" if unmodified else f"{human_bytes(shipped)} shipped to {step.source}"
