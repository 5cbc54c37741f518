"""What people and programs may ask and order about the fleet: each is decided here, once, by whichever way it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from drengine.audit import FOLDER, AuditLog
from drengine.control.agents import BrokerAgents, NoAgents
from drengine.failover.config import OrchestratorConfig
from drengine.failover.doors import door_of
from drengine.failover.engine import Engine
from drengine.failover.registry import Registry
from drengine.failover.witness import Witness
from drengine.fleet.answers import FleetAnswer, PolicyAnswer, RetiredAnswer, RolloutAnswer, SourceAnswer
from drengine.fleet.errors import DOWNGRADE, RETIRE_REFUSED, ROLLOUT_ACTIVE, UNKNOWN_ROLLOUT, UPGRADE_IMPOSSIBLE
from drengine.fleet.expected import issued_in
from drengine.fleet.look import Parts, look
from drengine.fleet.offer import offered
from drengine.fleet.rings import Progress, is_older, rings_of
from drengine.fleet.rollout import Rollout, Rollouts, State, foreseen, new_id, rollout_answer
from drengine.model.clock import Clock, SystemClock
from drengine.model.errors import DrengineError
from drengine.model.names import check_name
from drengine.ownership import make_directory
from drengine.people.door import Door
from drengine.people.roles import NOBODY, Action, Person, permit
from drengine.policy.errors import BAD_POLICY
from drengine.policy.kept import Policy, PolicyFile, Retired
from drengine.policy.settings import check_pattern, check_setting
from drengine.store.errors import UNKNOWN_SOURCE
from drengine.store.store import Store
from drengine.target.key import keks_of, s3_of


@dataclass(frozen=True, slots=True)
class FleetOrders:
    """Questions and orders of one person, whose roles are asked first."""

    parts: Parts
    witness: Witness
    who: Person = NOBODY

    def look(self) -> FleetAnswer:
        """How all sources stand.

        Raises:
            DrengineError: NOT_PERMITTED.
        """
        permit(self.who, Action.LOOK)
        return look(self.parts)

    # ---- policy ----------------------------------------------------------------------------------------------

    def policy(self) -> PolicyAnswer:
        """What was decided.

        Raises:
            DrengineError: NOT_PERMITTED, POLICY_UNUSABLE.
        """
        permit(self.who, Action.LOOK)
        return _policy_answer(self._file.read())

    def set_policy(self, sources: str, values: Mapping[str, str]) -> PolicyAnswer:
        """Decide settings for a source, or all that a pattern means; others of the same pattern stay.

        Raises:
            DrengineError: NOT_PERMITTED; BAD_POLICY, nothing was changed; POLICY_UNUSABLE, AUDIT_UNUSABLE.
        """
        check_pattern(sources)
        if not values:
            raise DrengineError(BAD_POLICY, "no setting was given")
        for name, value in values.items():
            check_setting(name, value)
        return self._change("policy.set", sources, values, lambda rules: {**rules, **values})

    def unset_policy(self, sources: str, names: list[str]) -> PolicyAnswer:
        """Take back what was decided for this source or pattern: these settings, or all of them.

        Raises:
            DrengineError: NOT_PERMITTED; BAD_POLICY, there is no such; POLICY_UNUSABLE, AUDIT_UNUSABLE.
        """
        check_pattern(sources)

        def without(rules: Mapping[str, str]) -> dict[str, str]:
            if strange := [each for each in names if each not in rules] or ([] if rules else [sources]):
                raise DrengineError(BAD_POLICY, f"nothing was set for {sources!r} that is called {strange[0][:40]!r}")
            return {name: value for name, value in rules.items() if names and name not in names}

        return self._change("policy.unset", sources, {"settings": names}, without)

    def _change(
        self,
        did: str,
        sources: str,
        details: Mapping[str, Any],
        change: Callable[[Mapping[str, str]], Mapping[str, str]],
    ) -> PolicyAnswer:
        permit(self.who, Action.GOVERN)
        with self._file.changing() as policy:
            changed = dict(change(policy.rules.get(sources, {})))
            rules = {pattern: dict(each) for pattern, each in policy.rules.items() if pattern != sources}
            if changed:
                rules[sources] = changed
            after = msgspec.structs.replace(policy, version=policy.version + 1, rules=rules)
            self.witness.governed(self.who, did, sources, {**details, "version": after.version})
            self._file.keep(after)
        return _policy_answer(after)

    # ---- upgrades ----------------------------------------------------------------------------------------------

    def upgrade(
        self,
        version: str,
        sha256: str,
        rings: Sequence[str],
        *,
        limit_seconds: float,
        at_once: int,
        dry_run: bool = False,
        downgrade: bool = False,
    ) -> RolloutAnswer:
        """Begin to upgrade agents, ring by ring; whoever has an executor carries it out. Blocks.

        Args:
            version: that agents shall run: it has to be the one that the authority hands out.
            sha256: of that file; empty: as it is handed out.
            rings: see `rings.rings_of`.
            limit_seconds: how long an agent may take to be back and well.
            at_once: how many agents of a ring are ordered at the same time.
            dry_run: only say who would be upgraded when.
            downgrade: also to an older version.

        Raises:
            DrengineError: NOT_PERMITTED; UPGRADE_IMPOSSIBLE; DOWNGRADE; ROLLOUT_ACTIVE, ROLLOUT_UNUSABLE,
                AUDIT_UNUSABLE; that the authority can't be reached.
        """
        permit(self.who, Action.GOVERN)
        found = offered(self.parts.config)
        if found.version != version or sha256 not in ("", found.sha256):
            told = f"the authority hands out {found.version} ({found.sha256[:12]}), and not {version} ({sha256[:12]})"
            raise DrengineError(UPGRADE_IMPOSSIBLE, told)
        sources = {each.source: each for each in look(self.parts).sources}
        parts = rings_of(rings, list(sources.values()))
        names = [name for ring in parts for name in ring.sources]
        newer = [f"{name} has {sources[name].version}" for name in names if is_older(version, sources[name].version)]
        if newer and not downgrade:
            raise DrengineError(DOWNGRADE, f"{version} is older: {', '.join(newer[:5])}{', ...' if newer[5:] else ''}")
        now_ns = self.parts.clock.now_ns()
        rollout = Rollout(
            id=new_id(now_ns),
            version=version,
            sha256=found.sha256,
            size_bytes=found.size_bytes,
            rings=tuple(parts),
            agents={name: Progress(before=sources[name].version, tracker=sources[name].tracker) for name in names},
            by=self.who.name,
            created_ns=now_ns,
            limit_seconds=limit_seconds,
            at_once=at_once,
        )
        if dry_run:
            return rollout_answer(foreseen(rollout, sources))
        with self._rollouts.changing() as change:
            if change.rollout is not None and change.rollout.state is State.RUNNING:
                raise DrengineError(ROLLOUT_ACTIVE, f"{change.rollout.id} is under way")
            details = {"version": version, "sha256": found.sha256, "rings": [ring.name for ring in parts]}
            self.witness.governed(self.who, "fleet.upgrade", rollout.id, details)
            change.rollout = rollout
        return rollout_answer(rollout)

    def rollout(self) -> RolloutAnswer:
        """The newest upgrade.

        Raises:
            DrengineError: NOT_PERMITTED, UNKNOWN_ROLLOUT, ROLLOUT_UNUSABLE.
        """
        permit(self.who, Action.LOOK)
        return rollout_answer(self._rollouts.newest(), is_left=self._rollouts.is_left())

    def resume_rollout(self) -> RolloutAnswer:
        """Go on with the newest upgrade, and with who was sick in it or left out.

        Raises:
            DrengineError: NOT_PERMITTED, UNKNOWN_ROLLOUT, ROLLOUT_UNUSABLE, AUDIT_UNUSABLE.
        """
        return self._set_state(State.RUNNING, "fleet.upgrade.resume")

    def stop_rollout(self) -> RolloutAnswer:
        """Order no more agents in the newest upgrade.

        Raises:
            DrengineError: NOT_PERMITTED, UNKNOWN_ROLLOUT, ROLLOUT_UNUSABLE, AUDIT_UNUSABLE.
        """
        return self._set_state(State.STOPPED, "fleet.upgrade.stop")

    def _set_state(self, state: State, did: str) -> RolloutAnswer:
        permit(self.who, Action.GOVERN)
        with self._rollouts.changing() as change:
            if change.rollout is None:
                raise DrengineError(UNKNOWN_ROLLOUT, "no upgrade of the fleet was begun yet")
            rollout = change.rollout
            if rollout.state is not state and (state is State.RUNNING or rollout.state is State.RUNNING):
                self.witness.governed(self.who, did, rollout.id, {})
                message = f"{self.who.name} stopped it" if state is State.STOPPED else ""
                rollout = msgspec.structs.replace(rollout, state=state, message=message)
                change.rollout = rollout
        return rollout_answer(rollout)

    @property
    def _rollouts(self) -> Rollouts:
        return Rollouts(self.parts.registry)

    # ---- retiring --------------------------------------------------------------------------------------------

    def retire(
        self, source: str, *, force: bool = False, serials: Sequence[str] = (), dry_run: bool = False
    ) -> RetiredAnswer:
        """A source is no more: it may not ship, nothing warns of it, its points go when their time is up.

        Args:
            source: its name.
            force: also while it is connected.
            serials: of its certificates, where the orchestrator does not see the CA: they are no return.
            dry_run: only say whether it could be.

        Raises:
            DrengineError: NOT_PERMITTED, UNKNOWN_SOURCE, RETIRE_REFUSED, POLICY_UNUSABLE, AUDIT_UNUSABLE.
        """
        permit(self.who, Action.GOVERN)
        check_name(source, what="source")
        found = next((each for each in look(self.parts).sources if each.source == source), None)
        if found is None:
            raise DrengineError(UNKNOWN_SOURCE, f"nothing is known of a source {source!r}")
        self._require_retirable(found, force=force)
        ca = self.parts.config.fleet.ca
        now_ns = self.parts.clock.now_ns()
        issued = issued_in(ca, now_ns / 1e9).serials.get(source, ()) if ca else ()
        if not dry_run:
            with self._file.changing() as policy:
                before = policy.retired.get(source)
                made = before or Retired(now_ns, self.who.name)
                made = msgspec.structs.replace(made, serials=tuple(sorted({*made.serials, *issued, *serials})))
                self.witness.governed(self.who, "source.retire", source, {"force": force, "serials": made.serials})
                self._file.keep(msgspec.structs.replace(policy, retired={**policy.retired, source: made}))
        has_certificate = bool(found.certificate_ends_ns)
        return RetiredAnswer(source=source, retired=not dry_run, has_certificate=has_certificate, serials=list(issued))

    def _require_retirable(self, found: SourceAnswer, *, force: bool) -> None:
        runs = self.parts.registry.runs(unfinished=True) if self.parts.registry else []
        held = next((run.id for run in runs if found.source in run.sources), None)
        if held is not None:
            hint = f"`drengine run show {held}` says how far it is; `drengine abort {held}` ends it."
            raise DrengineError(RETIRE_REFUSED, f"{found.source!r} is held by the unfinished run {held}", hint=hint)
        if force or found.retired_ns or found.connected is False:
            return
        if found.connected is None:
            why = "; ".join(f"{what}: {reason}" for what, reason in look(self.parts).unknown.items())
            raise DrengineError(RETIRE_REFUSED, f"nobody can tell whether {found.source!r} is connected: {why}")
        state = f" ({found.state})" if found.state else ""
        raise DrengineError(RETIRE_REFUSED, f"{found.source!r} is connected{state}")

    @property
    def _file(self) -> PolicyFile:
        return PolicyFile(self.parts.config.store)


def _policy_answer(policy: Policy) -> PolicyAnswer:
    return PolicyAnswer(version=policy.version, rules={name: dict(each) for name, each in policy.rules.items()})


def orders_of(engine: Engine, who: Person) -> FleetOrders:
    """Orders to the site of an engine."""
    site = engine.site
    parts = Parts(engine.config, site.clock, site.store, engine.registry, engine.agents)
    return FleetOrders(parts, engine.registry.witness, who)


@asynccontextmanager
async def open_fleet(
    config: OrchestratorConfig, know: Callable[[Door], Person], *, clock: Clock | None = None
) -> AsyncIterator[FleetOrders]:
    """Orders to a site whose parts are opened for them; a part that can't be opened is told as unknown.

    Raises:
        DrengineError: NOT_SIGNED_IN, NOT_PERMITTED; ACCOUNTS_UNUSABLE, AUDIT_UNUSABLE.
    """
    clock = clock or SystemClock()
    await asyncio.to_thread(make_directory, config.state)
    audit = await asyncio.to_thread(AuditLog.open, config.state / FOLDER, clock=clock)
    troubles: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        store: Store | None = None
        registry: Registry | None = None
        try:
            registry = await asyncio.to_thread(Registry.open, config.registry_url, clock=clock, audit=audit)
            stack.push_async_callback(asyncio.to_thread, registry.close)
        except DrengineError as error:
            troubles["registry"] = f"{error.message} [{error.kind.id}]"
        who = await asyncio.to_thread(know, door_of(config, clock, registry))
        permit(who, Action.LOOK)
        try:
            keks = await asyncio.to_thread(keks_of, config.encryption, config.store)
            options = s3_of(config.s3, config.store)
            opened = await asyncio.to_thread(
                Store.open, config.store, clock=clock, read_only=True, keks=keks, storage_options=options
            )
            store = stack.enter_context(opened)
        except DrengineError as error:
            troubles["store"] = f"{error.message} [{error.kind.id}]"
        agents: BrokerAgents | NoAgents = NoAgents()
        if config.broker.address is not None:
            agents = await stack.enter_async_context(BrokerAgents(config.broker, clock=clock, audit=audit))
            await agents.settled()
        witness = registry.witness if registry else Witness(audit)
        yield FleetOrders(Parts(config, clock, store, registry, agents, troubles), witness, who)
