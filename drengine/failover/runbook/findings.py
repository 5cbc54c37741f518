"""What is wrong with a runbook, as values: where, a stable id, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field

FINDINGS_MAX = 50
SHOWN_CHARACTERS_MAX = 60
LINE_CHARACTERS_MAX = 400
CANDIDATES_MAX = 200


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a text; lines and columns count from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One mistake.

    Attributes:
        id: stable name of the kind of mistake; docs/runbooks.md lists them.
        path: keys that lead there, ``waves[0].then[1].http``; empty for the whole.
        warning: it may be meant so; the runbook can be run.
    """

    id: str
    place: Place
    path: str
    message: str
    hint: str
    warning: bool = False

    def shown(self, where: str) -> str:
        """``shop.yaml:12:7: error unknown-key at sources.db: MESSAGE. HINT``"""
        return f"{self.summary(where)}. {self.hint}"

    def summary(self, where: str) -> str:
        """The same without the hint."""
        grade = "warning" if self.warning else "error"
        at = f" at {self.path}" if self.path else ""
        return f"{where}:{self.place.line}:{self.place.column}: {grade} {self.id}{at}: {self.message}"


class TooMany(Exception):
    """Enough was found: nobody reads more, and nothing may take long."""


@dataclass(slots=True)
class Findings:
    """Collects; raises TooMany when there are FINDINGS_MAX."""

    found: list[Finding] = field(default_factory=list)

    def add(self, id: str, place: Place, path: str, message: str, hint: str, *, warning: bool = False) -> None:
        """One more."""
        path, message, hint = (_shortened(each) for each in (path, message, hint))
        self.found.append(Finding(id, place, path, message, hint, warning))
        if len(self.found) >= FINDINGS_MAX:
            raise TooMany

    @property
    def errors(self) -> list[Finding]:
        """Those because of which the runbook can't be run."""
        return [each for each in self.found if not each.warning]


def shown(text: object) -> str:
    """A short form of what was found, printable on one line."""
    form = repr(text)
    return form if len(form) <= SHOWN_CHARACTERS_MAX else f"{form[: SHOWN_CHARACTERS_MAX - 3]}..."


def did_you_mean(text: str, known: Iterable[str]) -> str:
    """A hint that names the nearest of `known`, or all of them when there are few, or none."""
    names = sorted(known)
    if len(text) <= SHOWN_CHARACTERS_MAX:
        near = difflib.get_close_matches(text, names[:CANDIDATES_MAX], n=1, cutoff=0.5)
        if near:
            return f"Did you mean {near[0]!r}?"
    few = ", ".join(names[:12])
    return f"Possible here: {few}{', ...' if len(names) > 12 else ''}." if names else "There is none to choose from."


def _shortened(text: str) -> str:
    return text if len(text) <= LINE_CHARACTERS_MAX else f"{text[: LINE_CHARACTERS_MAX - 3]}..."
