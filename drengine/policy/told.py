"""What of a policy the source's agent is told, and how both sides name it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from drengine.policy.settings import SETTINGS, Decided


def told_to(rules: Mapping[str, Decided]) -> dict[str, str]:
    """The values that concern the agent."""
    return {name: rule.value for name, rule in sorted(rules.items()) if name in SETTINGS and SETTINGS[name].is_sent}


def digest_of(settings: Mapping[str, str]) -> str:
    """Names the values; the agent repeats it, so that it is known which it has. Empty where nothing is decided."""
    if not settings:
        return ""
    return hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode()).hexdigest()[:16]
