"""The agent at the broker: its report, and what each verb of a command means for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from random import Random
from typing import Any

import msgspec

from drengine.config.bandwidth import BandwidthSchedule
from drengine.control.dispatch import Action, Generations, Tell
from drengine.control.gate import Policy
from drengine.control.messages import AgentReport, Command, PartyKind, Verb
from drengine.control.party import Party
from drengine.enrolment.messages import AgentAnswer as AgentOffer
from drengine.enrolment.place import Place
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.model.points import check_new_label
from drengine.model.states import ReplicationState
from drengine_agent.config import AgentConfig
from drengine_agent.daemon.commands import run_ordered
from drengine_agent.daemon.home import SettleOrder, settle
from drengine_agent.daemon.policy import SitePolicy
from drengine_agent.daemon.service import Agent
from drengine_agent.daemon.state import make_state_directory, read_state
from drengine_agent.daemon.upgrade import Upgrade
from drengine_agent.errors import COMMAND_REFUSED
from drengine_agent.fencing.lease import REPORTS_PER_LEASE, SelfFencing

DETAILS = (
    "hint",
    "detail",
    "tracker",
    "target",
    "points_cut",
    "durable_sequence",
    "bandwidth_limit_bytes_per_second",
    "branch",
    "standing",
    "fence_reason",
    "fence_run",
    "way_home",
)
"""What of the status goes into each report."""


class RemoteOrders:
    """Verbs to methods of the agent. It may be at the broker before there is an agent, and then only says so."""

    def __init__(
        self,
        config: AgentConfig,
        clock: Clock,
        random: Random,
        policy: SitePolicy | None = None,
        restart: Callable[[], object] = lambda: None,
    ) -> None:
        """`policy`: what the site decided so far; `restart` starts the process anew after an upgrade, or when
        the host has become a source's home.

        Raises:
            DrengineError: BAD_NAME, BAD_TLS_FILES; STATE_DAMAGED, the state directory can't be made.
        """
        control = config.control
        self._config = config
        self._policy = policy or SitePolicy(config)
        self._agent: Agent | None = None
        self._clock = clock
        self._restart = restart
        self.has_settled = False
        """It has become a source's home: the process begins anew as that source's agent."""
        self._bytes_by_network: Mapping[str, Sequence[int]] = {}
        self.lease = SelfFencing(control.lease, clock)
        make_state_directory(config.state_directory)
        certificate = control.certificate
        place = Place(certificate.parent) if certificate else None
        self._upgrade = Upgrade(config.state_directory, place, restart=restart)
        self._first_generation = read_state(config.state_directory).generation
        self.party = Party(
            control,
            PartyKind.AGENT,
            config.party,
            actions=self._actions(),
            report=self.report,
            log=config.state_directory / "commands",
            clock=clock,
            random=random,
            report_seconds=min(control.report_interval, control.lease / REPORTS_PER_LEASE or control.report_interval),
            on_confirmed=self.lease.confirm,
            policy=Policy(control.verbs, control.forced_reverse == "approved"),
        )

    def attach(self, agent: Agent, bytes_by_network: Mapping[str, Sequence[int]]) -> None:
        """From now on, this one is reported and obeys; with it, what went over which network (received, sent)."""
        self._agent = agent
        self._bytes_by_network = bytes_by_network

    async def run(self) -> None:
        """Be at the broker until cancelled.

        Raises:
            OSError: the log of commands can't be used.
        """
        await self.party.run()

    async def keep_lease(self) -> None:
        """Fence the agent when its lease is over; returns then, or at once where there is no lease."""
        await self.lease.watch(self._fence_itself, lambda: self.party.link.detail)

    def _actions(self) -> Mapping[Verb, Action]:
        return {
            Verb.SYNC: Action(self._sync),
            Verb.CUT: Action(self._cut, repeatable=False),
            Verb.PAUSE: Action(self._pause),
            Verb.RESUME: Action(self._resume),
            Verb.THROTTLE: Action(self._throttle),
            Verb.POLICY: Action(self._take_policy, Generations.ANY),
            Verb.UPGRADE: Action(self._take_upgrade, Generations.ANY),
            Verb.STATUS: Action(self._status, Generations.ANY, remembered=False),
            Verb.FENCE: Action(self._fence, Generations.NOT_OLDER, bounded=False),
            Verb.QUIESCE: Action(self._quiesce),
            Verb.PRESERVE: Action(self._preserve, Generations.NOT_OLDER),
            Verb.REVERSE: Action(self._reverse, Generations.NOT_OLDER),
            Verb.SETTLE: Action(self._settle, Generations.ANY),
            Verb.RUN: Action(self._run, Generations.NOT_OLDER),
            Verb.RELEASE: Action(self._release, Generations.NOT_OLDER, bounded=False),
        }

    def report(self) -> AgentReport:
        """How the agent stands; who, which and when are filled in by the party."""
        agent, lease_seconds = self._agent, self._config.control.lease
        if agent is None:
            return AgentReport(
                name="",
                kind=PartyKind.AGENT,
                state=ReplicationState.INITIATING,
                reason="none",
                generation=self._first_generation,
                fenced=False,
                serving=False,
                lag_seconds=0.0,
                backlog_bytes=0,
                at_ns=0,
                sequence=0,
                details={
                    "lease_seconds": lease_seconds,
                    "tracker": self._config.tracker,
                    "policy": self._policy_told(),
                    "upgrade": self._upgrade.told(),
                },
            )
        status: dict[str, Any] = agent.status()
        ignored = {str(reason): count for reason, count in self.party.dispatcher.ignored.items()}
        return AgentReport(
            name="",
            kind=PartyKind.AGENT,
            state=status["state"],
            reason=status["reason"],
            generation=agent.generation,
            fenced=agent.is_fenced,
            serving=agent.is_serving,
            lag_seconds=status["lag_seconds"],
            backlog_bytes=status["backlog_bytes"],
            at_ns=0,
            sequence=0,
            volumes=status["volumes"],
            details={
                **{key: status[key] for key in DETAILS if key in status},
                "lease_seconds": lease_seconds,
                "policy": self._policy_told(),
                "upgrade": self._upgrade.told(),
                "commands_ignored": ignored,
                "allowed_commands": list(self._config.allow.commands),
                "home_of": self._config.source if self._config.source != self._config.party else "",
                "spare": self._config.is_spare_now,
                "bytes_by_network": {network: list(each) for network, each in self._bytes_by_network.items()},
            },
        )

    def _policy_told(self) -> dict[str, Any]:
        """Which policy we have, and what we go by."""
        return {
            "digest": self._policy.digest,
            "in_use": {name: list(each) for name, each in self._policy.in_use.items()},
        }

    async def _fence_itself(self) -> None:
        agent = self._started
        await agent.fence(agent.generation, "lease")

    @property
    def _started(self) -> Agent:
        if self._agent is None:
            raise DrengineError(COMMAND_REFUSED, "the agent has not started yet; it waits for its first lease")
        return self._agent

    async def _sync(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        self._started.sync()
        return {}

    async def _cut(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        label = check_new_label(str(command.arguments.get("label", "")))
        return {"sequence": await self._started.cut(label)}

    async def _pause(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        self._started.pause()
        return {}

    async def _resume(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        self._started.resume()
        return {}

    async def _throttle(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        """Until the next restart or reload: the configuration stays what the host's owner wrote."""
        schedule = BandwidthSchedule.parse(str(command.arguments["bandwidth"]))
        self._started.set_bandwidth(schedule)
        return {"bandwidth": str(command.arguments["bandwidth"])}

    async def _take_policy(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        settings, digest = command.arguments["settings"], str(command.arguments["digest"])
        config = self._policy.take(settings, digest)
        if self._agent is not None:
            await asyncio.to_thread(self._agent.tune, config, self._policy.in_use)  # it may wait for a freeze to end
        return self._policy_told()

    async def _take_upgrade(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        return await self._upgrade.order(msgspec.convert(dict(command.arguments), AgentOffer))

    async def _status(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        return self._started.status()

    async def _fence(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        """`cuts_clients` False: the volumes are not served by us, so whoever writes them writes on."""
        agent = self._started
        generation = int(command.arguments.get("generation", command.generation))
        reason = "moved" if command.arguments.get("moved") is True else "command"
        await agent.fence(generation, reason, run=command.run, by=str(command.arguments.get("by", "")))
        return {"generation": agent.generation, "cuts_clients": agent.capture.serves}

    async def _quiesce(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        label, by = check_new_label(str(command.arguments.get("label", ""))), str(command.arguments.get("by", ""))
        return await self._started.quiesce(label, run=command.run, by=by)

    async def _preserve(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        branch, generation = int(command.arguments["branch"]), int(command.arguments["generation"])
        return asdict(await self._started.preserve(branch, generation, tell))

    async def _reverse(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        force = command.arguments.get("force") is True
        report = await self._started.reverse(str(command.arguments["point"]), tell, force=force)
        return {**asdict(report), "unmodified": report.unmodified}

    async def _settle(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        order = msgspec.convert(dict(command.arguments), SettleOrder)
        volumes = list(self._started.capture.volumes.values())
        now_ns = self._clock.now_ns()
        made = await asyncio.to_thread(settle, self._config, volumes, order, run=command.run, now_ns=now_ns)
        if self._config.source != made.source:
            self.has_settled = True
            self._restart()
        return {"source": made.source, "disks": {name: each.disk for name, each in made.volumes.items()}}

    async def _run(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        return await run_ordered(command, self._config.source, self._config.allow.commands)

    async def _release(self, command: Command, tell: Tell) -> Mapping[str, Any]:
        generation, branch = int(command.arguments["generation"]), int(command.arguments.get("branch", 0))
        await self._started.release(generation, branch, force=command.arguments.get("force") is True)
        return {"generation": self._started.generation}
