"""Which log and which entries a person names, for `drengine audit`."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from drengine.audit import FOLDER, Outcome
from drengine.audit.errors import AUDIT_UNUSABLE
from drengine.audit.files import HEAD_FILE, Line
from drengine.audit.verify import read_entries
from drengine.cli.chosen import log_directory, needed
from drengine.config.kinds import parse_duration
from drengine.model.errors import DrengineError
from drengine.terminal import exact_time

LogArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DIRECTORY",
        help="A store, an orchestrator's state or a CA, whose log lies in its folder `audit`; or a log itself. "
        "Else as DRENGINE_CONFIG says.",
        default_factory=lambda: None,
        show_default=False,
        callback=needed(log_directory),
    ),
]


@dataclass(frozen=True)
class Wanted:
    """Which entries are wanted."""

    who: Annotated[str, typer.Option("--who", help="Only who is called so; * stands for anything.")] = "*"
    did: Annotated[str, typer.Option("--did", help="Only what is called so, such as run.* or ca.revoke.")] = "*"
    on: Annotated[str, typer.Option("--on", help="Only what was done to this, such as a run's id.")] = "*"
    outcome: Annotated[Outcome | None, typer.Option("--outcome", help="Only what ended so.")] = None
    since: Annotated[
        str, typer.Option("--since", help="Only from then on: 2026-11-29T10:00:00Z, or as long ago as 2h or 7d.")
    ] = ""
    after: Annotated[int, typer.Option("--after", min=0, help="Only behind the entry of this number.")] = 0

    def entries(self, directory: Path) -> Iterator[Line]:
        """Those of a log, oldest first.

        Raises:
            DrengineError: AUDIT_UNUSABLE.
        """
        begin_ns = moment_ns(self.since) if self.since else 0
        for line in read_entries(log_in(directory)):
            entry = line.entry
            texts = ((entry.who, self.who), (entry.did, self.did), (entry.on, self.on))
            if (
                entry.number > self.after
                and entry.at_ns >= begin_ns
                and self.outcome in (None, entry.outcome)
                and all(fnmatch.fnmatchcase(text, pattern) for text, pattern in texts)
            ):
                yield line


def log_in(directory: Path) -> Path:
    """Where the log lies that a person means.

    Raises:
        DrengineError: AUDIT_UNUSABLE: there is none.
    """
    for place in (directory, directory / FOLDER):
        if (place / HEAD_FILE).exists():
            return place
    raise DrengineError(AUDIT_UNUSABLE, f"{directory} holds no audit log")


def answer(line: Line) -> dict[str, Any]:
    """An entry for machines."""
    return {**msgspec.to_builtins(line.entry), "at": exact_time(line.entry.at_ns), "hash": line.head.hash}


def moment_ns(text: str) -> int:
    """A time, or how long ago, as nanoseconds since 1970.

    Raises:
        BadParameter
    """
    try:
        return time.time_ns() - int(parse_duration(text) * 1e9)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text[:60]!r} is neither a time nor a duration") from error
    return int(found.replace(tzinfo=found.tzinfo or UTC).timestamp()) * 10**9
