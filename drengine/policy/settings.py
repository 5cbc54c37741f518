"""Settings that a site decides for its sources: which there are, what they may be, and which pattern's value counts."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from drengine.config import parse_duration
from drengine.config.bandwidth import BandwidthSchedule
from drengine.model.cuts import cut_kinds
from drengine.model.errors import DrengineError
from drengine.model.names import check_name
from drengine.policy.errors import BAD_POLICY
from drengine.store.care.retention import RetentionPolicy

PATTERN_MAX = 100
_PATTERN = re.compile(r"[a-z0-9*?][a-z0-9._*?-]*", re.ASCII)
_POINT_SECONDS = 0.001, 3600.0


@dataclass(frozen=True, slots=True)
class Setting:
    """One that a site may decide.

    Attributes:
        check: raises DrengineError or ValueError for a value that is not possible.
        example: how a value is written.
        is_sent: the source's agent is told; otherwise it concerns the target or the orchestrator.
    """

    check: Callable[[str], object]
    example: str
    is_sent: bool = False


def _point_interval(text: str) -> None:
    low, high = _POINT_SECONDS
    if not low <= parse_duration(text) <= high:
        raise ValueError(f"{low:g} to {high:g} s are possible")


SETTINGS: Mapping[str, Setting] = {
    "cuts": Setting(cut_kinds, "quiet, frozen", is_sent=True),
    "bandwidth": Setting(BandwidthSchedule.parse, "08:00-18:00=20MiB/s, otherwise unlimited", is_sent=True),
    "point_interval": Setting(_point_interval, "0.2s", is_sent=True),
    "retention": Setting(RetentionPolicy.parse, "all for 10m, every 10m for 1h, every 1h for 1d"),
    "ring": Setting(lambda text: check_name(text, what="ring"), "canary"),
}


@dataclass(frozen=True, slots=True)
class Decided:
    """A setting's value for one source, and the pattern that gives it."""

    value: str
    by: str


Rules = Mapping[str, Mapping[str, str]]
"""Values by setting, by pattern of sources' names."""


def check_pattern(pattern: str) -> None:
    """Names of sources: one, or with * and ? several.

    Raises:
        DrengineError: BAD_POLICY.
    """
    if len(pattern) > PATTERN_MAX or not _PATTERN.fullmatch(pattern):
        raise DrengineError(BAD_POLICY, f"{pattern[:80]!r} is no source's name, and no pattern such as 'shop-*'")


def check_setting(name: str, value: str) -> None:
    """Before it is kept.

    Raises:
        DrengineError: BAD_POLICY, naming the setting and what is wrong.
    """
    setting = SETTINGS.get(name)
    if setting is None:
        raise DrengineError(BAD_POLICY, f"there is no setting {name[:40]!r}; there are {', '.join(SETTINGS)}")
    try:
        setting.check(value)
    except (ValueError, DrengineError) as error:
        said = error.message if isinstance(error, DrengineError) else str(error)
        hint = f'Write it as in {name}="{setting.example}".'
        raise DrengineError(BAD_POLICY, f"{name}: {said}", hint=hint) from error


def decided(rules: Rules, source: str) -> dict[str, Decided]:
    """What holds for a source. The pattern that says most about its name wins: the name itself, then the one with most
    letters that are no wildcards, then the one that comes first in the alphabet.
    """
    found: dict[str, Decided] = {}
    matching = [pattern for pattern in rules if fnmatch.fnmatchcase(source, pattern)]
    for pattern in sorted(matching, key=lambda each: (each != source, -len(re.sub(r"[*?]", "", each)), each)):
        for name, value in rules[pattern].items():
            found.setdefault(name, Decided(value, pattern))
    return found
