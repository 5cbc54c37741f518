"""The site's rules, with shorter times: an hour passes in seconds, and what is compared stays what it was.

Only times are changed, by a stated factor: how long a condition has to hold, the range over which something is looked
at, and seconds that are compared with a metric of seconds. No metric is.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

DAY_SECONDS = 86400
FACTORS = {
    "DrengineDiscoverySilent": 60,  # 10 s
    "DrengineReplicationLagging": 30,  # 2 s
    "DrengineReplicationBroken": 100,  # 9 s
    "DrengineScrubOverdue": DAY_SECONDS,  # 14 s
    "DrengineStoreFillsSoon": 60,  # over 6 minutes, and 72 ahead
    "DrengineMirrorBehind": 60,  # 5 s
    "DrengineAuthoritySilent": 90,  # 40 s; a healthy authority may be silent for 20
    "DrengineStoreDamaged": 120,  # over 30 s
    "DrengineMaintenanceFailing": 120,  # over 30 s
    "DrengineForcedCutsFail": 30,  # over 30 s
    "DrengineDrillTooOld": DAY_SECONDS,  # 32 s
    "DrengineReadinessUnknown": 360,  # 10 s
    "DrengineRunWaits": 30,  # 2 s
    "DrengineNotificationsFail": 60,  # over 15 s
}
"""By which the times of an alert are divided; those of the others stay."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": DAY_SECONDS}
_RANGE = re.compile(r"\[(\d+)([smhd])\]")
_COMPARED = re.compile(r"(_seconds(?:\{[^}]*\})?[\"}) ]* > )(\d+)(?! \*)")
_DAYS = re.compile(r"(\d+) \* 86400")


def hastened(text: str) -> str:
    """A file of rules with shorter times; a condition has to hold for a second at most."""
    document: dict[str, Any] = yaml.safe_load(text)
    for rule in (rule for group in document["groups"] for rule in group["rules"]):
        if "for" in rule:
            rule["for"] = "1s"
        rule["expr"] = hastened_expression(rule["expr"], FACTORS.get(rule.get("alert", ""), 1))
    return yaml.safe_dump(document, sort_keys=False)


def hastened_expression(expression: str, factor: float) -> str:
    """All its times divided by that."""
    if factor == 1:
        return expression
    expression = _RANGE.sub(lambda found: f"[{round(int(found[1]) * _UNITS[found[2]] / factor)}s]", expression)
    expression = _COMPARED.sub(lambda found: f"{found[1]}{int(found[2]) / factor:g}", expression)
    return _DAYS.sub(lambda found: f"{int(found[1]) * DAY_SECONDS / factor:g}", expression)
