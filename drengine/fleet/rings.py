"""Which agents are upgraded when, and what makes one sick: pure.

A ring is the next part of the fleet: a ring of the policy by its name, sources by a pattern, a number of those that are
left, or a share of all. Each source is in the first ring that takes it; those that none takes stay as they are.
"""

from __future__ import annotations

import enum
import fnmatch
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from drengine.fleet.answers import SourceAnswer
from drengine.fleet.errors import UPGRADE_IMPOSSIBLE
from drengine.model.errors import DrengineError

REST = "rest"
"""The ring of all that are left."""
_NUMBER = re.compile(r"[1-9]\d{0,5}", re.ASCII)
_SHARE = re.compile(r"([1-9]\d?|100)%", re.ASCII)
_HEALTHY = "CONTINUOUS"


class Phase(enum.StrEnum):
    """How far one agent is."""

    WAITING = "waiting"
    ORDERED = "ordered"
    DONE = "done"
    SKIPPED = "skipped"
    """It is not there, or was sick before: it is left as it is, and told."""
    SICK = "sick"
    """The rollout stopped here."""


class Progress(msgspec.Struct, frozen=True):
    """One agent's upgrade.

    Attributes:
        phase: how far it is.
        before: the version that it had.
        tracker: that it had: it must be the same afterwards.
        began_ns, ended_ns: when it was ordered, and when it was seen well, or sick.
        message: why it is skipped or sick.
        formerly: what it told of an earlier upgrade when it was ordered: that one's failure is no word on this order.
    """

    phase: Phase = Phase.WAITING
    before: str = ""
    tracker: str = ""
    began_ns: int = 0
    ended_ns: int = 0
    message: str = ""
    formerly: dict[str, str] = {}


class Ring(msgspec.Struct, frozen=True):
    """A part of the fleet, in order."""

    name: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What agents shall run."""

    version: str
    sha256: str


def rings_of(names: Sequence[str], sources: Sequence[SourceAnswer]) -> list[Ring]:
    """The rings that somebody named, with the sources of each.

    Raises:
        DrengineError: UPGRADE_IMPOSSIBLE, a name is none, or takes nobody.
    """
    left = [each for each in sources if not each.retired_ns and each.joined]
    count = len(left)
    rings: list[Ring] = []
    for name in names:
        taken = _taken(name, left, count)
        if not taken:
            raise DrengineError(UPGRADE_IMPOSSIBLE, f"the ring {name[:60]!r} takes no source that is not in one before")
        rings.append(Ring(name, tuple(each.source for each in taken)))
        left = [each for each in left if each not in taken]
    return rings


def _taken(name: str, left: list[SourceAnswer], count: int) -> list[SourceAnswer]:
    if name == REST:
        return left
    if labelled := [each for each in left if each.ring == name]:
        return labelled
    if _NUMBER.fullmatch(name):
        return left[: int(name)]
    if share := _SHARE.fullmatch(name):
        return left[: math.ceil(count * int(share[1]) / 100)]
    return [each for each in left if fnmatch.fnmatchcase(each.source, name)]


def unfit(source: SourceAnswer | None) -> str:
    """Why an agent is not ordered anything now; empty when it is well."""
    if source is None:
        return "nothing is known of it any more"
    if source.connected is not True:
        return "it is not there"
    if source.state != _HEALTHY:
        return f"it is not well: {_shown(source)}"
    if source.upgrade is None:
        return f"its version {source.version or '?'} can't be upgraded from here: upgrade it on its host once"
    return ""


def judged(progress: Progress, source: SourceAnswer | None, wanted: Wanted, now_ns: int, limit_ns: int) -> Progress:
    """An agent that was ordered, as it is now: still ordered, done, or sick.

    Sick at once: it says that the upgrade failed, or tracks in another way, or compares everything because what it
    tracked was lost. Sick when the limit is over: it is not back, not of the new version, or not CONTINUOUS.
    """
    if source is not None and source.connected:
        told = source.upgrade or {}
        if told.get("state") == "failed" and told.get("to") == wanted.sha256 and told != progress.formerly:
            return _sick(progress, f"its upgrade failed: {told.get('message', '')}", now_ns)
        if told.get("sha256") == wanted.sha256:
            if source.tracker != progress.tracker:
                return _sick(progress, f"its tracker was {progress.tracker}, and is {source.tracker}", now_ns)
            if source.state == "RESCAN":
                return _sick(progress, f"what it tracked was lost: {_shown(source)}", now_ns)
            if source.state == _HEALTHY:
                return msgspec.structs.replace(progress, phase=Phase.DONE, ended_ns=now_ns)
    if now_ns - progress.began_ns < limit_ns:
        return progress
    limit = f"within {limit_ns / 1e9:g} s"
    if source is None or not source.connected:
        return _sick(progress, f"it was not back {limit}", now_ns)
    if (source.upgrade or {}).get("sha256") != wanted.sha256:
        return _sick(progress, f"it did not tell the new version {limit}: it has {source.version}", now_ns)
    return _sick(progress, f"it was not CONTINUOUS {limit}: {_shown(source)}", now_ns)


def is_older(version: str, other: str) -> bool:
    """Whether one version is older than another, by its numbers."""
    return _numbers(version) < _numbers(other)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(each) for each in re.findall(r"\d+", version)[:6])


def _sick(progress: Progress, message: str, now_ns: int) -> Progress:
    return msgspec.structs.replace(progress, phase=Phase.SICK, message=message, ended_ns=now_ns)


def _shown(source: SourceAnswer) -> str:
    return source.state if source.reason in ("", "none") else f"{source.state} ({source.reason})"
