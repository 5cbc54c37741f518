"""What was looked at before anything is done, and what was found: values."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from drengine.failover.runbook.values import Mode


class Severity(enum.StrEnum):
    """What a check that does not pass means for a run."""

    BLOCKS = "blocks"
    WARNS = "warns"


TOLD_IN_PLANS = frozenset({"cloud-reachable"})
"""Checks whose finding a plan shows though they pass: it is true of each launch, and not to be forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One check of one thing.

    Attributes:
        id: ``CHECK:ABOUT``, or ``CHECK`` where there is one thing only.
        check, about: the check's stable name, and what it was about: a source, a host, a program.
        severity: what it means that it does not pass.
        ok: it passes.
        despite: it does not, and somebody said that the run goes on all the same.
        vital: nobody can say so.
        message: what was looked at and found.
        hint: what to do; empty where it passes.
    """

    id: str
    check: str
    about: str
    severity: Severity
    ok: bool
    despite: bool = False
    vital: bool = False
    message: str
    hint: str = ""

    @property
    def blocks(self) -> bool:
        """No run goes on past it."""
        return not self.ok and not self.despite and self.severity is Severity.BLOCKS

    @property
    def word(self) -> str:
        """For people: ``ok``, ``despite``, ``blocks`` or ``warns``."""
        return "ok" if self.ok else "despite" if self.despite else self.severity.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """How ready a runbook is for a run in a mode.

    Attributes:
        ready: nothing blocks.
        at_ns, seconds: when it was looked, and how long that took.
        checks: what does not pass first, what blocks before what warns.
    """

    runbook: str
    mode: Mode
    ready: bool
    at_ns: int
    seconds: float
    checks: list[Checked]


def in_order(checks: Iterable[Checked]) -> list[Checked]:
    """What does not pass first."""
    return sorted(checks, key=lambda each: (each.ok, each.severity is Severity.WARNS, each.id))


def blocking(checks: Iterable[Checked]) -> list[str]:
    """Ids of the checks that no run goes past."""
    return [each.id for each in checks if each.blocks]
