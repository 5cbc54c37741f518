"""What a launch gives: whatever later steps may refer to as ${SOURCE.KEY}."""

from __future__ import annotations

from typing import Any

import msgspec


class Launched(msgspec.Struct, frozen=True, kw_only=True):
    """A workload that was healthy.

    Attributes:
        instance: its name.
        details: as its driver told them, without the workload's last words.
        disks: NBD URIs by volume, without what opens them.
    """

    instance: str = ""
    details: dict[str, Any] = {}
    disks: dict[str, str] = {}
