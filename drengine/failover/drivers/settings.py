"""A driver's settings: plain values of a runbook as a checked struct."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from drengine.failover.drivers.errors import LAUNCH_SETTINGS
from drengine.model.errors import DrengineError

T = TypeVar("T")


def read_settings(kind: type[T], settings: Mapping[str, Any], driver: str) -> T:
    """The settings as `kind`.

    Raises:
        DrengineError: LAUNCH_SETTINGS, naming the key.
    """
    try:
        return msgspec.convert(dict(settings), kind)
    except msgspec.ValidationError as error:
        raise DrengineError(LAUNCH_SETTINGS, f"settings of driver {driver}: {error}") from error
