"""What runs here already: workloads that an earlier run launched on a source's promoted branch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

OPTION = "launches"
"""The run's option that holds them, by source."""


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


def earlier_launches(options: Mapping[str, Any]) -> dict[str, EarlierLaunch]:
    """Those that a run's options hold, by source."""
    return msgspec.convert(options.get(OPTION, {}), dict[str, EarlierLaunch])


def launches_option(launches: Mapping[str, EarlierLaunch]) -> dict[str, Any]:
    """The option that holds them; none where nothing runs here."""
    return {OPTION: msgspec.to_builtins(dict(launches))} if launches else {}
