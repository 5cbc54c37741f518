"""The kinds of steps there are: ours, and those that installed packages bring as entry points.

A plan is kept in its run's journal, as JSON; here it becomes steps again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import msgspec

from drengine.failover.runbook.errors import BAD_RUNBOOK
from drengine.failover.runbook.values import OnFailure
from drengine.failover.steps.approval import APPROVAL
from drengine.failover.steps.branch import BRANCH
from drengine.failover.steps.choose_point import CHOOSE_POINT
from drengine.failover.steps.command import COMMAND
from drengine.failover.steps.convert import CONVERT
from drengine.failover.steps.declare import DECLARE
from drengine.failover.steps.dns import DNS
from drengine.failover.steps.drop_branch import DROP_BRANCH
from drengine.failover.steps.fence import FENCE
from drengine.failover.steps.hand_back import HAND_BACK
from drengine.failover.steps.http import HTTP
from drengine.failover.steps.launch import LAUNCH
from drengine.failover.steps.notify import NOTIFY
from drengine.failover.steps.preflight import PREFLIGHT
from drengine.failover.steps.preserve import PRESERVE
from drengine.failover.steps.promote import PROMOTE
from drengine.failover.steps.quiesce_recovered import QUIESCE_RECOVERED
from drengine.failover.steps.quiesce_source import QUIESCE_SOURCE
from drengine.failover.steps.release import RELEASE
from drengine.failover.steps.reverse import REVERSE
from drengine.failover.steps.reverse_last import REVERSE_LAST
from drengine.failover.steps.settle import SETTLE
from drengine.failover.steps.sql import SQL
from drengine.failover.steps.step import ActionKind, MissingKind, PlannedStep, StepKind
from drengine.failover.steps.stop_services import STOP_SERVICES
from drengine.failover.steps.stop_workload import STOP_WORKLOAD
from drengine.failover.steps.tcp import TCP
from drengine.failover.steps.wait import WAIT
from drengine.plugins import Plugins

log = logging.getLogger("drengine.failover")

PACKAGES = Plugins("drengine.step_kinds", "step kind", {}, BAD_RUNBOOK)
BUILT_IN: tuple[StepKind[Any, Any], ...] = (
    # The engine's own, in the order in which runs use them.
    DECLARE,
    PREFLIGHT,
    QUIESCE_SOURCE,
    FENCE,
    CHOOSE_POINT,
    BRANCH,
    PROMOTE,
    CONVERT,
    LAUNCH,
    STOP_SERVICES,
    PRESERVE,
    SETTLE,
    REVERSE,
    QUIESCE_RECOVERED,
    REVERSE_LAST,
    HAND_BACK,
    RELEASE,
    STOP_WORKLOAD,
    DROP_BRANCH,
    # Those that runbooks name.
    APPROVAL,
    WAIT,
    COMMAND,
    HTTP,
    TCP,
    SQL,
    DNS,
    NOTIFY,
)


class StepKinds(Mapping[str, StepKind[Any, Any]]):
    """Kinds of steps by name; a later one of the same name takes the place of an earlier one.

    Attributes:
        actions: those that runbooks name.
    """

    def __init__(self, kinds: Iterable[StepKind[Any, Any]]) -> None:
        self._kinds = {kind.name: kind for kind in kinds}
        self.actions: Mapping[str, ActionKind[Any, Any]] = {
            name: kind for name, kind in self._kinds.items() if isinstance(kind, ActionKind)
        }

    def __getitem__(self, name: str) -> StepKind[Any, Any]:
        return self._kinds[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def read_step(self, kept: Mapping[str, Any]) -> PlannedStep[Any]:
        """A step as a plan in a journal keeps it; one of a kind that is not known here can't be carried out."""
        form = msgspec.convert(kept, _Kept)
        settings = {key: value for key, value in form.settings.items() if key != CLEANS}
        kind = self.get(form.kind) or MissingKind(form.kind)
        try:
            read = kind.read_settings(settings)
        except msgspec.ValidationError:
            kind, read = MissingKind(form.kind), settings
        known = msgspec.structs.asdict(form) | {"kind": kind, "settings": read}
        return PlannedStep(**known, cleans=form.settings.get(CLEANS, ""))


CLEANS = "cleans"
"""The journal keeps among a cleanup's settings which step it cleans up after."""


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A step in a journal."""

    id: str
    kind: str
    title: str
    needs: tuple[str, ...] = ()
    source: str = ""
    wave: str = ""
    settings: dict[str, Any] = {}
    timeout_seconds: float = 30.0
    retries: int = 0
    every_seconds: float = 1.0
    critical: bool = True
    on_failure: OnFailure = OnFailure.STOP
    cleanup: bool = False
    inside: str = ""


def step_json(step: PlannedStep[Any]) -> dict[str, Any]:
    """A step as a plan in a journal keeps it."""
    settings = step.kind.settings_json(step.settings) | ({CLEANS: step.cleans} if step.cleans else {})
    known = {name: getattr(step, name) for name in _Kept.__struct_fields__}
    made: dict[str, Any] = msgspec.to_builtins(_Kept(**known | {"kind": step.kind.name, "settings": settings}))
    if not step.inside:
        del made["inside"]  # as older releases keep it: what was approved of them has the same digest
    return made


@cache
def step_kinds() -> StepKinds:
    """Every kind that can be loaded. Ours can't be replaced by a package that happens to be installed.

    One that can't be loaded is left out, with a line in the log: no package may keep a failover from running.
    """
    return StepKinds((*_brought(), *BUILT_IN))


def _brought() -> Iterator[StepKind[Any, Any]]:
    for name in PACKAGES.available():
        try:
            kind = PACKAGES.load(name)()
            if not isinstance(kind, StepKind) or kind.name != name:
                raise TypeError(f"it makes no step kind of that name, but {kind!r}")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001 - code from elsewhere may raise anything
            log.warning("step kind %r is left out: %s", name, error)
        else:
            yield kind
