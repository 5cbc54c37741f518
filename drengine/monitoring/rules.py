"""Prometheus rules: those for every site, and what each runbook promises."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

RULES_FILE = "drengine.rules.yml"


@dataclass(frozen=True, slots=True)
class Promise:
    """What a runbook promises, in seconds."""

    runbook: str
    sources: tuple[str, ...]
    rpo_seconds: float
    rto_seconds: float


def rules_text() -> str:
    """The rules for every site."""
    return files(__package__).joinpath(RULES_FILE).read_text(encoding="utf-8")


def promise_rules(promises: Iterable[Promise]) -> str:
    """Rules with each runbook's own RPO and RTO, as series that the rules for every site compare with.

    Those ask the orchestrator first, so that a changed runbook changes its alerts; these figures, of the day on which
    this was written, count while it can't be asked.
    """
    rules: list[dict[str, Any]] = []
    for each in sorted(promises, key=lambda each: each.runbook):
        rules += [
            _written("rpo", each.rpo_seconds, runbook=each.runbook, source=source) for source in sorted(each.sources)
        ]
        rules.append(_written("rto", each.rto_seconds, runbook=each.runbook))
    groups = [{"name": "drengine-runbooks", "rules": rules}] if rules else []
    return yaml.safe_dump({"groups": groups}, sort_keys=False)


def _written(what: str, seconds: float, **labels: str) -> dict[str, Any]:
    return {"record": f"drengine:{what}_written_seconds", "expr": f"vector({seconds:g})", "labels": labels}
