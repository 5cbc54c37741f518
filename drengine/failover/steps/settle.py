"""Giving a source a new home: a spare host's agent becomes that source's, with its disks still to be filled."""

from __future__ import annotations

import msgspec

from drengine.control.errors import NO_ANSWER
from drengine.control.messages import Verb
from drengine.failover.steps.agents import LOOK_SECONDS, order_agent, refused
from drengine.failover.steps.branches import newest_point
from drengine.failover.steps.declare import declared
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult
from drengine.model.errors import DrengineError
from drengine.process.threads import in_thread

ANSWER_SECONDS = 60.0
BEGUN_SECONDS = 60.0
"""Within which an agent that was answered has begun anew as the source's."""


class SettleSettings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where the source is to live: the agent's name, and which of its disks is which volume."""

    host: str
    disks: dict[str, str] = {}


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """By volume, the disk of the new home that it lies on."""

    disks: dict[str, str] = {}


class SettleStep(StepKind[SettleSettings, Settled]):
    """Makes a spare host the home of a source, fenced: who ships the source changes with the hand-over, not before.

    A host that has become the source's home already says so.
    """

    name = "settle"
    timeout_seconds = ANSWER_SECONDS + BEGUN_SECONDS + 10.0
    retries = 3
    estimate_seconds = 5.0

    def title(self, source: str, settings: SettleSettings) -> str:
        return f"make {settings.host} the new home of {source}"

    async def act(self, step: PlannedStep[SettleSettings], context: StepContext) -> StepResult[Settled]:
        host, known = step.settings.host, declared(step, context)
        point = await in_thread(lambda: newest_point(context.site.store, step.source, known.branch))
        order = {
            "source": step.source,
            "generation": known.generation,
            "volumes": [msgspec.to_builtins(each) for each in point.geometry],
            "disks": step.settings.disks,
            "by": context.started_by,
        }
        answer = await order_agent(
            step, context, Verb.SETTLE, order, generation=0, timeout_seconds=ANSWER_SECONDS, host=host
        )
        if not answer.ok:
            return refused(answer)
        await self._begun(step, context)
        settled = msgspec.convert(answer.result, Settled, strict=False)
        listed = ", ".join(f"{volume} on {disk}" for volume, disk in settled.disks.items())
        return StepResult(True, f"{host} is to be the home of {step.source}: {listed}", data=settled)

    async def _begun(self, step: PlannedStep[SettleSettings], context: StepContext) -> None:
        """Wait until its agent says that it is the source's.

        Raises:
            DrengineError: NO_ANSWER.
        """
        agents, clock, host = context.site.agents, context.site.clock, step.settings.host
        until = clock.monotonic() + BEGUN_SECONDS
        while True:
            report = agents.reports().get(host)
            if report is not None and report.details.get("home_of") == step.source and agents.is_online(host):
                return
            if clock.monotonic() >= until:
                raise DrengineError(NO_ANSWER, f"the agent of {host} does not come back as that of {step.source}")
            context.say(f"waiting for the agent of {host} to begin as that of {step.source}")
            await clock.sleep(LOOK_SECONDS)


SETTLE = SettleStep()
