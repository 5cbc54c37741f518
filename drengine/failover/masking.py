"""What looks like a secret is masked, once, wherever people and programs read (fault 59)."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import msgspec

from drengine.redaction import without_secrets


def masked(text: str) -> str:
    """`text` without what looks like a secret."""
    return without_secrets(text)


def masked_json(value: Any) -> Any:
    """A value as JSON, with each text in it masked."""
    if isinstance(value, msgspec.Struct):
        return masked_json(msgspec.to_builtins(value))
    if isinstance(value, str) and not isinstance(value, enum.Enum):
        return masked(value)
    if isinstance(value, Mapping):
        return {key: masked_json(each) for key, each in value.items()}
    return [masked_json(each) for each in value] if isinstance(value, (list, tuple)) else value
