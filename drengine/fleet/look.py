"""Looking at the whole fleet: what store, registry, broker, CA and inventory say of each source, put together.

Whatever can't be asked is told as unknown, with the reason, and hides nothing of what the others say. Nothing waits
for a party: the broker's word is what it said last, and the target is probed for a second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from drengine.config import Address, joined
from drengine.control.agents import BrokerAgents, NoAgents
from drengine.control.messages import AgentReport, PartyKind
from drengine.failover.config import OrchestratorConfig
from drengine.failover.registry import Registry
from drengine.failover.registry.values import Party
from drengine.fleet.answers import FleetAnswer, SourceAnswer
from drengine.fleet.errors import TARGET_SILENT
from drengine.fleet.expected import Issued, issued_in
from drengine.joining.inventory import read_inventory
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.model.homes import Home
from drengine.model.points import PointSelector, RecoveryPoint
from drengine.policy.kept import Policy, PolicyFile
from drengine.policy.settings import Decided, decided
from drengine.policy.told import digest_of, told_to
from drengine.store.errors import STORE_AWAY, UNKNOWN_POINT
from drengine.store.store import Store
from drengine.transport.reach import first_reached

_NS = 1_000_000_000
_DAY_NS = 86_400 * _NS

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Parts:
    """Of which a site is looked at. What could not be opened is None, and `troubles` says why."""

    config: OrchestratorConfig
    clock: Clock
    store: Store | None
    registry: Registry | None
    agents: BrokerAgents | NoAgents
    troubles: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _InStore:
    """What the store says of one source."""

    newest: RecoveryPoint | None
    is_written: bool
    target: str
    home: Home


@dataclass(frozen=True, slots=True)
class _Seen:
    """All that is known of the site at one moment; each part empty where it can't be asked."""

    now_ns: int
    in_store: Mapping[str, _InStore]
    parties: Mapping[str, Party]
    reports: Mapping[str, AgentReport]
    online: frozenset[str]
    issued: Issued
    inventory: frozenset[str]
    policy: Policy
    unknown: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        """Every source that anything speaks of."""
        issued = {*self.issued.ends_at, *self.issued.invited}
        agents = {*self.parties, *self.reports, *issued}
        homes = {each.home.agent for each in self.in_store.values()}
        return sorted({*self.in_store, *(agents - homes), *self.inventory, *self.policy.retired})

    def agent_of(self, source: str) -> str:
        """Name of the agent of the host where a source lives."""
        held = self.in_store.get(source)
        return held.home.agent if held else source


def look(parts: Parts) -> FleetAnswer:
    """How all of them stand. Blocks; for a worker thread."""
    seen = _see(parts)
    sources = [_answer(seen, name) for name in seen.names]
    active = [each for each in sources if not each.retired_ns]
    return FleetAnswer(
        at_ns=seen.now_ns,
        sources=sources,
        expected=len(active),
        joined=sum(each.joined for each in active),
        silent=sum(bool(each.silent_since_ns) for each in active),
        retired=len(sources) - len(active),
        open_tokens=seen.issued.open_tokens,
        unknown=dict(seen.unknown),
    )


def _see(parts: Parts) -> _Seen:
    unknown = dict(parts.troubles)

    def asked(what: str, question: Callable[[], T], otherwise: T) -> T:
        if what in unknown:
            return otherwise
        try:
            return question()
        except DrengineError as error:
            unknown[what] = f"{error.message} [{error.kind.id}]"
            return otherwise

    config, store, registry, agents = parts.config, parts.store, parts.registry, parts.agents
    nobody: dict[str, Party] = {}
    nothing: dict[str, _InStore] = {}
    now_ns = parts.clock.now_ns()
    ca, inventory = config.fleet.ca, config.fleet.inventory
    presences = list(agents.presences().items())
    asked("target", lambda: _probe(config.export), None)
    if isinstance(agents, BrokerAgents) and not agents.link.is_connected:
        unknown["broker"] = f"no connection: {agents.link.detail}"
    in_store = asked("store", lambda: _in_store(store), nothing) if store else nothing
    if "store" in unknown:
        unknown["policy"] = "it lies in the store's directory"
    return _Seen(
        now_ns,
        in_store,
        asked("registry", lambda: _parties(registry), nobody) if registry else nobody,
        {name: each for name, each in list(agents.reports().items()) if each.kind is PartyKind.AGENT},
        frozenset(name for name, (kind, _) in presences if kind is PartyKind.AGENT and agents.is_online(name)),
        asked("identities", lambda: issued_in(ca, now_ns / _NS), Issued()) if ca else Issued(),
        asked("inventory", lambda: frozenset(read_inventory(inventory).servers), frozenset())
        if inventory
        else frozenset(),
        asked("policy", PolicyFile(config.store).read, Policy()),
        unknown,
    )


def _in_store(store: Store) -> dict[str, _InStore]:
    """
    Raises:
        DrengineError: STORE_AWAY, or why it can't be read. One that is full or read-only can be.
    """
    try:
        store.require_usable(free_bytes_min=0)
    except DrengineError as error:
        if error.kind is STORE_AWAY:
            raise
    written, placed = store.written_branches(), store.targets.placed()
    return {
        info.name: _InStore(
            _newest(store, info.name),
            (info.name, info.active_branch) in written,
            placed.get(info.name, ""),
            store.home(info.name),
        )
        for info in store.sources()
    }


def _newest(store: Store, source: str) -> RecoveryPoint | None:
    try:
        return store.find_point(source, PointSelector())
    except DrengineError as error:
        if error.kind is not UNKNOWN_POINT:
            raise
        return None


def _parties(registry: Registry) -> dict[str, Party]:
    return {each.name: each for each in registry.parties() if each.kind is PartyKind.AGENT}


def _probe(addresses: Sequence[Address]) -> None:
    """Whether a target answers where workloads find their disks.

    Raises:
        DrengineError: TARGET_SILENT.
    """
    if not addresses:
        return
    try:
        first_reached(addresses)
    except OSError as error:
        where = joined(addresses)
        raise DrengineError(TARGET_SILENT, f"nobody answers at {where}: {error.strerror or error}") from error


def _answer(seen: _Seen, name: str) -> SourceAnswer:
    agent = seen.agent_of(name)
    held, party, retired = seen.in_store.get(name), seen.parties.get(agent), seen.policy.retired.get(name)
    report = seen.reports.get(agent) or (party.report if party else None)
    details: Mapping[str, Any] = report.details if report else {}
    newest = held.newest if held else None
    age = max(0.0, (seen.now_ns - min(newest.time_ns, newest.received_ns)) / _NS) if newest else None
    is_online = agent in seen.online
    connected = _connected(seen, name)
    heard_ns = max(
        party.reported_ns if party else 0, report.at_ns if report else 0, newest.received_ns if newest else 0
    )
    joined = bool(newest or report or (party and party.since_ns) or (held and held.is_written))
    told_ns = details.get("certificate_ends_ns")
    ends_ns = told_ns if isinstance(told_ns, int) else seen.issued.ends_at.get(agent, 0) * _NS
    rules = decided(seen.policy.rules, name)
    return SourceAnswer(
        source=name,
        known_by=_known_by(seen, name),
        joined=joined,
        retired_ns=retired.at_ns if retired else 0,
        state=report.state if report else "",
        reason=report.reason if report else "",
        connected=connected,
        target=held.target if held else "",
        silent_since_ns=heard_ns if joined and connected is False and not retired else 0,
        version=_text(details, "version") or (party.release if party else ""),
        platform=_text(details, "platform"),
        tracker=_text(details, "tracker"),
        lag_seconds=report.lag_seconds if report and is_online else age,
        newest_point=newest.id if newest else None,
        newest_point_ns=newest.shown_ns if newest else 0,
        newest_point_age_seconds=age,
        certificate_ends_ns=ends_ns,
        certificate_days=(ends_ns - seen.now_ns) / _DAY_NS if ends_ns else None,
        ring=rules["ring"].value if "ring" in rules else "",
        policy=_policy(rules, details),
        policy_taken=_taken(rules, details),
        upgrade=_upgrade(details),
        host="" if agent == name else agent,
        former_hosts={each: _former(seen, each) for each in sorted(held.home.former)} if held else {},
    )


def _former(seen: _Seen, agent: str) -> str:
    """How the agent of a host stands where a source lived before."""
    if agent not in seen.online:
        return "gone"
    report = seen.reports.get(agent)
    knows = report is not None and report.details.get("fence_reason") == "moved"
    return "refused" if knows else "back, and not told yet"


def _connected(seen: _Seen, name: str) -> bool | None:
    """None where neither the broker nor the store can tell."""
    held = seen.in_store.get(name)
    if seen.agent_of(name) in seen.online or (held and held.is_written):
        return True
    return None if {"store", "broker"} <= seen.unknown.keys() else False


def _known_by(seen: _Seen, name: str) -> list[str]:
    by = {
        "store": name in seen.in_store,
        "broker": seen.agent_of(name) in {*seen.parties, *seen.reports},
        "identity": seen.agent_of(name) in seen.issued.ends_at,
        "token": name in seen.issued.invited,
        "inventory": name in seen.inventory,
    }
    return [what for what, holds in by.items() if holds]


def _policy(rules: Mapping[str, Decided], details: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What was decided, and what the agent says that it uses."""
    found: dict[str, dict[str, Any]] = {each: {"value": rule.value, "by": rule.by} for each, rule in rules.items()}
    told = details.get("policy")
    in_use = told.get("in_use") if isinstance(told, dict) else None
    for setting, (value, where) in _pairs(in_use):
        found[setting] = {"value": None, "by": "", **found.get(setting, {}), "in_use": value, "from": where}
    return found


def _pairs(in_use: Any) -> list[tuple[str, tuple[str, str]]]:
    """What an agent says that it uses, as far as it is well formed: it is a stranger's word."""
    if not isinstance(in_use, dict):
        return []
    pairs = {name: each for name, each in in_use.items() if isinstance(each, list) and len(each) == 2}
    return [(str(name), (str(value), str(where))) for name, (value, where) in pairs.items()]


def _taken(rules: Mapping[str, Decided], details: Mapping[str, Any]) -> bool | None:
    told = details.get("policy")
    return told.get("digest") == digest_of(told_to(rules)) if isinstance(told, dict) else None


def _upgrade(details: Mapping[str, Any]) -> dict[str, str] | None:
    told = details.get("upgrade")
    if not isinstance(told, dict):
        return None
    return {str(name)[:40]: value[:500] for name, value in told.items() if isinstance(value, str)}


def _text(details: Mapping[str, Any], name: str) -> str:
    found = details.get(name)
    return found[:120] if isinstance(found, str) else ""
