"""What a run was begun with, beyond its runbook and mode. The registry keeps it as a JSON object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class EarlierLaunch(msgspec.Struct, frozen=True, kw_only=True):
    """A workload as the run that launched it knew it. The way home starts from there; another failover stops it first.

    Attributes:
        run: that run's id.
        instance, branch: the workload, and what it writes.
        driver, host, settings: how it was launched.
    """

    run: str
    instance: str
    branch: int
    driver: str
    host: str = ""
    settings: dict[str, Any] = {}


class NewHome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a source is to live from now on.

    Attributes:
        host: name of the agent there.
        disks: by volume, the disk of that host, by its name or path; others are found by themselves.
    """

    host: str
    disks: dict[str, str] = {}


class RunOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The options of a run.

    Attributes:
        point: `latest`, a time, a point's id or its label; empty: as the runbook says.
        force: go on although a source can't be fenced.
        hold: keep what a drill launched until somebody approves its end.
        discard_divergent: on the way home, do not keep what a source wrote on its own.
        despite: checks past which the run goes on although they do not pass: ids, with or without what they are about.
        force_by: who has to approve that the run is forced, as its runbook says; empty: nobody is asked.
        onto: by source, the host that becomes its home; others go home to where they live.
        launches: by source, what an earlier run launched on its promoted branch and runs here now.
        homes: by source, the host where it lives, of those that do not live with their namesake.
    """

    point: str = ""
    force: bool = False
    hold: bool = False
    discard_divergent: bool = False
    despite: list[str] = []
    force_by: list[str] = []
    onto: dict[str, NewHome] = {}
    launches: dict[str, EarlierLaunch] = {}
    homes: dict[str, str] = {}

    def kept(self) -> dict[str, Any]:
        """As the registry keeps them."""
        made: dict[str, Any] = msgspec.to_builtins(self)
        return made


def read_options(kept: Mapping[str, Any]) -> RunOptions:
    """The options that the registry kept; what another release kept beside them is left out."""
    return msgspec.convert(dict(kept), RunOptions, strict=False)
