"""Texts of a runbook when they are used: references filled in, secrets left out of what people read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from drengine.failover.runbook.values import Runbook
from drengine.failover.steps.errors import BAD_REFERENCE, UNSAFE_REFERENCE
from drengine.failover.steps.launched import Launched
from drengine.failover.steps.step import PlannedStep, StepContext
from drengine.model.errors import DrengineError
from drengine.process.given import REFERENCE, given
from drengine.redaction import REDACTED, references_in

_KEY = re.compile(r"[a-z0-9_]+", re.ASCII)
_REFERENCE = re.compile(rf"\$\{{([a-z0-9][a-z0-9._-]*)\.([a-z0-9_]+)\}}|{REFERENCE}", re.ASCII)
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*)|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?", re.ASCII)
_IN_URL = re.compile(r"[A-Za-z0-9_~](?:\.?[A-Za-z0-9_~-]+)*", re.ASCII)
_IN_TEXT = re.compile(r"[A-Za-z0-9 ._:/@,+=%~\[\]-]*", re.ASCII)
VALUE_CHARACTERS_MAX, SHOWN_CHARACTERS_MAX = 1000, 100

Details = Mapping[str, Mapping[str, Any]]


def launched_details(context: StepContext) -> Details:
    """What launch drivers told about the workloads of this run, by source."""
    return {
        id.removeprefix("launch:"): result.details
        for id, result in context.results.items()
        if id.startswith("launch:") and isinstance(result, Launched)
    }


def filled(text: str, details: Details) -> str:
    """`text` with each ``${SOURCE.KEY}`` replaced by that detail, and each reference to a secret by that secret.
    Everything else stands for itself: no shell.

    A detail was told by a host that may be hostile: it is refused where it could change what the text around it means.

    Raises:
        DrengineError: BAD_REFERENCE, UNSAFE_REFERENCE.
    """

    def replace(match: re.Match[str]) -> str:
        if match["way"]:
            return secret_of(match["way"], match["what"])
        known = details.get(match[1], {})
        if match[2] not in known:
            there = ", ".join(sorted(f"{source}.{key}" for source in details for key in details[source])) or "none yet"
            raise DrengineError(BAD_REFERENCE, f"{match[0]} is not known here; known are: {there}")
        value, why = _told(known[match[2]]), ""
        if value is not None and REDACTED in value:
            why = "it was a secret, which is not kept: refer to it by ${env:NAME} or ${file:/PATH} here, too"
        elif value is None:
            why = "it is neither a text nor a number"
        else:
            why = _doubt(value, text[: match.start()], text[match.end() :])
        if why:
            told = ascii(known[match[2]])[:SHOWN_CHARACTERS_MAX]
            raise DrengineError(UNSAFE_REFERENCE, f"{match[0]} is {told}, which is not used here: {why}")
        return str(value)

    return _REFERENCE.sub(replace, text)


def secret_of(way: str, what: str) -> str:
    """What a reference to a secret stands for.

    Raises:
        DrengineError: BAD_REFERENCE.
    """
    try:
        return given(way, what)
    except ValueError as error:
        hint = "Give it to each process that executes the run, or mend its name in the runbook."
        raise DrengineError(BAD_REFERENCE, f"${{{way}:{what}}}: {error}", hint=hint) from error


def check_secrets(runbook: Runbook) -> None:
    """Return when everything is here that a runbook refers to.

    Raises:
        DrengineError: BAD_REFERENCE.
    """
    for way, what in references_in(msgspec.to_builtins(runbook)):
        secret_of(way, what)


def _told(value: object) -> str | None:
    """A detail as a text: of a scalar, or a list of numbers (processes)."""
    if isinstance(value, list) and all(type(each) is int for each in value):
        return str(value)
    return str(value) if isinstance(value, (str, int, float)) else None


def _doubt(value: str, before: str, after: str) -> str:
    """Why a value is refused between two texts; empty: it is not."""
    if len(value) > VALUE_CHARACTERS_MAX or not value.isprintable():
        return f"it is longer than {VALUE_CHARACTERS_MAX} characters, or has some that can't be seen"
    if value.startswith("-"):
        return "it would be taken for an option"
    scheme = before.rfind("://")
    address = before[scheme + 3 :]
    if scheme >= 0 and not re.search(r"[\s'\"]", address):
        if re.search(r"[/?#]", address):
            return "" if _IN_URL.fullmatch(value) else "it could change the address that it is part of"
        return "" if _HOST.fullmatch(value) else "it is no name or address of a host"
    if (before or after) and not _IN_TEXT.fullmatch(value):
        return "it has characters that mean something to a shell or a database"
    return ""


def environment_of(step: PlannedStep[Any], context: StepContext) -> dict[str, str]:
    """What a runbook's command learns about its run."""
    found = {
        "DRENGINE_RUN": context.run,
        "DRENGINE_MODE": context.mode.value,
        "DRENGINE_RUNBOOK": context.runbook.name,
        "DRENGINE_STEP": step.id,
        "DRENGINE_WAVE": step.wave,
        "DRENGINE_SOURCE": step.source,
        "DRENGINE_ATTEMPT": str(context.attempt),
    }
    for source, details in launched_details(context).items():
        prefix = "DRENGINE_" + re.sub(r"[^A-Z0-9]", "_", source.upper())
        told = {key: str(value) for key, value in details.items() if _KEY.fullmatch(key)}
        found |= {f"{prefix}_{key.upper()}": value for key, value in told.items() if "\0" not in value}
    return found
