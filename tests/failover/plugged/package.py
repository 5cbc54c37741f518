"""What a package of somebody else would hold: a kind of step, and a launch driver."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from drengine.failover.drivers.driver import Instance, LaunchRequest
from drengine.failover.drivers.settings import read_settings
from drengine.failover.runbook.sense import Sense
from drengine.failover.steps.step import ActionKind, PlannedStep, StepContext, StepResult


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A line in a log book."""

    book: str
    """File of the log book."""
    text: str
    """What is written; ${SOURCE.KEY} is not filled in."""


class Written(msgspec.Struct, frozen=True):
    """Where the line stands."""

    line: int = 0


class LogBookStep(ActionKind[Entry, Written]):
    """Writes a line; one that an interrupted try has written stands there."""

    name = "log-book"
    help = "Write a line into a log book."
    settings_type = Entry
    result_type = Written
    estimate_seconds = 7.0
    by_hand = True

    def title(self, source: str, settings: Entry) -> str:
        return f"note that {settings.text}"

    def examine(self, settings: Entry, sense: Sense) -> None:
        sense.filled(settings.text, "text")
        sense.no_way_up(settings.book, "book")

    async def act(self, step: PlannedStep[Entry], context: StepContext) -> StepResult[Written]:
        with open(step.settings.book, "a+") as book:  # noqa: ASYNC230, PTH123 - one line in a test
            book.write(f"{context.run} {step.settings.text}\n")
            book.seek(0)
            line = len(book.readlines())
        return StepResult(True, f"line {line}", data=Written(line))


class Broken:
    """What can't be loaded."""

    def __init__(self) -> None:
        raise OSError("the licence has run out")


class PaperSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of the driver below."""

    address: str


class PaperDriver:
    """Launches workloads on paper: a file says that one runs."""

    name = "paper"

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        read_settings(PaperSettings, settings, self.name)

    def launch(self, request: LaunchRequest, progress: Callable[[str], None]) -> Instance:
        request.directory.mkdir(parents=True, exist_ok=True)
        (request.directory / "running").write_text(json.dumps([disk.uri for disk in request.disks]))
        return self.inspect(request)

    def inspect(self, request: LaunchRequest) -> Instance:
        running = (request.directory / "running").exists()
        details = {"address": read_settings(PaperSettings, request.settings, self.name).address}
        return Instance(request.instance, running, running, details)

    def quiesce(self, request: LaunchRequest) -> None:
        self.stop(request)

    def stop(self, request: LaunchRequest) -> None:
        (request.directory / "running").unlink(missing_ok=True)
