"""Reading a runbook: text in, a checked runbook out, or every mistake with file, line, column and hint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from drengine.failover.drivers.driver import LaunchDriver
from drengine.failover.reading.check import check
from drengine.failover.reading.fit import fit
from drengine.failover.runbook.document import TEXT_CHARACTERS_MAX, parse
from drengine.failover.runbook.errors import BAD_RUNBOOK, UNKNOWN_RUNBOOK
from drengine.failover.runbook.findings import Finding, Findings, Place, TooMany
from drengine.failover.runbook.values import Runbook
from drengine.failover.steps.kinds import step_kinds
from drengine.model.errors import DrengineError


class RunbookError(DrengineError):
    """BAD_RUNBOOK with what was found."""

    def __init__(self, where: str, findings: tuple[Finding, ...]) -> None:
        errors = [each for each in findings if not each.warning]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__(
            BAD_RUNBOOK,
            errors[0].summary(where) + more,
            hint=f"{errors[0].hint} `drengine runbook validate FILE` lists all mistakes.",
        )
        self.findings = findings


@dataclass(frozen=True, slots=True)
class Examined:
    """What became of a text.

    Attributes:
        runbook: None when there are errors.
        findings: errors and warnings, in the order of their places.
    """

    runbook: Runbook | None
    findings: tuple[Finding, ...]


def read_runbook(text: str, *, where: str) -> Runbook:
    """A runbook that can be run.

    Args:
        text: YAML.
        where: what the text is called in messages.

    Raises:
        DrengineError: BAD_RUNBOOK, as a RunbookError.
    """
    examined = examine(text)
    if examined.runbook is None:
        raise RunbookError(where, examined.findings)
    return examined.runbook


def examine(text: str, *, drivers: Mapping[str, LaunchDriver] | None = None) -> Examined:
    """Everything that can be said about a text; never raises, whatever it holds.

    `drivers`: the installed launch drivers, if their settings are to be checked.
    """
    findings = Findings()
    book: Runbook | None = None
    try:
        root = parse(text, findings)
        if root is not None:
            fit(root, Runbook, findings)
            if not findings.errors:
                book = _values(root.builtins())
                check(book, root, findings, drivers=drivers)
    except TooMany:
        pass
    except msgspec.ValidationError as error:  # the shape was found right, so this would be a mistake of ours
        findings.found.append(Finding("wrong-type", Place(1, 1), "", str(error), "Compare docs/runbooks.md."))
    ordered = tuple(sorted(findings.found, key=lambda each: (each.place.line, each.place.column, each.id)))
    return Examined(None if findings.errors else book, ordered)


def _values(built: dict[str, Any]) -> Runbook:
    """The runbook of a tree that has its shape: the keys of a step that name a kind are its actions."""
    for wave in built["waves"]:
        for place in ("before", "then"):
            wave[place] = [_step(each) for each in wave.get(place, ())]
    return msgspec.convert(built, Runbook)


def _step(written: dict[str, Any]) -> dict[str, Any]:
    step, actions, kinds = dict[str, Any](), dict[str, Any](), step_kinds().actions
    for key, each in written.items():
        if key in kinds:
            actions[key] = msgspec.convert(each, kinds[key].settings_type)
        else:
            step[key] = each
    return {**step, "actions": actions}


def read_runbook_text(path: Path) -> str:
    """The text of a runbook's file.

    Raises:
        DrengineError: UNKNOWN_RUNBOOK when there is no such file or it can't be read; BAD_RUNBOOK when it is no text.
    """
    try:
        # A pipe or device in its place must not hold us up.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            data = file.read(4 * TEXT_CHARACTERS_MAX + 1) or b""
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it can't be read"
        raise DrengineError(UNKNOWN_RUNBOOK, f"{str(path)[:200]}: {why}") from error
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        found = Finding("not-utf-8", Place(line, column), "", "it is no text in UTF-8", "Save it as UTF-8.")
        raise RunbookError(str(path), (found,)) from error
