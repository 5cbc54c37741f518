"""What a check is, and what those who look are given."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from drengine.control.agents import BrokerAgents, NoAgents
from drengine.failover.config import OrchestratorConfig
from drengine.failover.readiness import Checked, Severity
from drengine.failover.registry import Registry
from drengine.failover.steps.step import Case, PlannedStep, Site
from drengine.people.door import Door
from drengine.redaction import without_secrets

T = TypeVar("T")
MESSAGE_CHARACTERS_MAX = 400


@dataclass(frozen=True, slots=True)
class Check:
    """One kind of check.

    Attributes:
        id: stable; alerts, `--despite` and docs/operations.md name it.
        looks_at: what is looked at, for the documents.
        hint: what to do when it does not pass.
        severity: what it means then.
        vital: no run goes on without it, whoever wants it.
    """

    id: str
    looks_at: str
    hint: str
    severity: Severity = Severity.BLOCKS
    vital: bool = False

    def found(
        self, about: str = "", *, seen: str = "", fault: str = "", hint: str = "", warns: bool = False
    ) -> Checked:
        """What was found about one thing.

        Args:
            about: which thing; empty where there is one only.
            seen: what was looked at and found.
            fault: why it does not pass; empty: it does.
            hint: a better one than the check's.
            warns: here it does not block.
        """
        return Checked(
            id=f"{self.id}:{about}" if about else self.id,
            check=self.id,
            about=about,
            severity=Severity.WARNS if warns else self.severity,
            ok=not fault,
            vital=self.vital,
            message=without_secrets(fault or seen)[:MESSAGE_CHARACTERS_MAX],
            hint=(hint or self.hint) if fault else "",
        )


@dataclass(frozen=True, slots=True)
class Scene:
    """What is looked at: the case, the steps that its run would have, and whatever they act upon."""

    case: Case
    steps: tuple[PlannedStep[Any], ...]
    sources: tuple[str, ...]
    site: Site
    config: OrchestratorConfig
    registry: Registry
    door: Door
    agents: BrokerAgents | NoAgents
    homes: Mapping[str, str] = field(default_factory=dict)
    """Where sources live that do not live with their namesake."""

    def agent_of(self, source: str) -> str:
        """Name of the agent of the host where a source lives."""
        return self.homes.get(source, source)


@dataclass(frozen=True, slots=True)
class Look:
    """A way of looking, and the checks it answers for; the first of them fails when it can't be done."""

    checks: tuple[Check, ...]
    look: Callable[[Scene], Awaitable[Iterable[Checked]]]


async def apart(work: Callable[[], T]) -> T:
    """Do what may block for ever (a file system that hangs, a peer that says nothing) in a thread that is left behind
    when nobody waits any more.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if not done.done():
            done.set_result(result) if error is None else done.set_exception(error)

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="preflight", daemon=True).start()
    return await done


async def all_of(looks: Iterable[Awaitable[Iterable[Checked]]]) -> list[Checked]:
    """Look at several things at once."""
    return [each for found in await asyncio.gather(*looks) for each in found]
