"""The agent at the broker: its report, and what each verb of a command means for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from drengine.control.dispatch import Action, Generations, Tell
from drengine.control.messages import AgentReport, Command, PartyKind, Verb
from drengine.control.party import Party
from drengine.model.clock import Clock
from drengine_agent.bandwidth import BandwidthSchedule
from drengine_agent.config import AgentConfig
from drengine_agent.control import check_label
from drengine_agent.service import Agent


def agent_party(
    agent: Agent, clock: Clock, random: Random, on_confirmed: Callable[[float], None] = lambda _: None
) -> Party:
    """The agent as a party at its configured broker.

    Args:
        agent: the agent.
        clock: its clock.
        random: spreads attempts to connect.
        on_confirmed: see Party.

    Raises:
        DrengineError: BAD_NAME, BAD_TLS_FILES.
    """
    remote = _Remote(agent)
    config: AgentConfig = agent.config
    remote.party = Party(
        config.control,
        PartyKind.AGENT,
        config.source,
        actions=remote.actions(),
        report=remote.report,
        memory=config.state_directory / "commands",
        clock=clock,
        random=random,
        report_seconds=config.control.report_interval,
        on_confirmed=on_confirmed,
    )
    return remote.party


DETAILS = ("hint", "detail", "tracker", "target", "points_cut", "durable_sequence", "bandwidth_limit_bytes_per_second")
"""What of the status goes into each report."""


class _Remote:
    """Verbs to methods of the agent."""

    party: Party

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def actions(self) -> Mapping[Verb, Action]:
        return {
            Verb.SYNC: Action(self._sync),
            Verb.CUT: Action(self._cut, repeatable=False),
            Verb.PAUSE: Action(self._pause),
            Verb.RESUME: Action(self._resume),
            Verb.THROTTLE: Action(self._throttle),
            Verb.STATUS: Action(self._status, Generations.ANY, remembered=False),
        }

    def report(self) -> AgentReport:
        """How the agent stands; who, which and when are filled in by the party."""
        agent = self._agent
        status: dict[str, Any] = agent.status()
        ignored = {reason.value: count for reason, count in self.party.dispatcher.ignored.items()}
        return AgentReport(
            name="",
            kind=PartyKind.AGENT,
            state=status["state"],
            reason=status["reason"],
            generation=_generation(agent),
            fenced=agent.facts().stopped == "fenced",
            serving=agent.capture.server is not None,
            lag_seconds=status["lag_seconds"],
            backlog_bytes=status["backlog_bytes"],
            at_ns=0,
            sequence=0,
            volumes=status["volumes"],
            details={**{key: status[key] for key in DETAILS if key in status}, "commands_ignored": ignored},
            lease_seconds=agent.config.control.lease,
        )

    async def _sync(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        self._agent.sync()
        return {}

    async def _cut(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        label = check_label(str(command.arguments.get("label", "")))
        return {"sequence": await self._agent.cut(label)}

    async def _pause(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        self._agent.pause()
        return {}

    async def _resume(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        self._agent.resume()
        return {}

    async def _throttle(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        """Until the next restart or reload: the configuration stays what the host's owner wrote."""
        schedule = BandwidthSchedule.parse(str(command.arguments["bandwidth"]))
        self._agent.set_bandwidth(schedule)
        return {"bandwidth": str(command.arguments["bandwidth"])}

    async def _status(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        return self._agent.status()


def _generation(agent: Agent) -> int:
    return agent._state.generation
