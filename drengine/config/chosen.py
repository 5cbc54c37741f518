"""The file that DRENGINE_CONFIG names, for whichever command is typed.

It is a target's file, an orchestrator's, or the folder in which both lie as `target.toml` and `orchestrator.toml`. A
command that needs the other kind takes the one beside it, and of a file of the other kind what both say: the store.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drengine.config.options import options_of, values_in
from drengine.model.errors import DrengineError

CONFIG_VARIABLE = "DRENGINE_CONFIG"
_FILES = ("orchestrator.toml", "target.toml")


def chosen_file(cls: type, name: str) -> Path | None:
    """The file with options of this class; None where the variable names none.

    Args:
        cls: the options class.
        name: of its file in a folder.
    """
    named = _named()
    if named is None:
        return None
    if named.is_dir():
        return named / name
    beside = named.with_name(name)
    if _fits(cls, named) or not beside.exists():
        return named if _fits(cls, named) else None
    return beside


def chosen_values() -> Mapping[str, Any]:
    """What the file says that names a store, as TOML holds it; empty where the variable names none.

    Raises:
        DrengineError: BAD_CONFIG.
    """
    named = _named()
    if named is None:
        return {}
    files = [each for each in (named / name for name in _FILES) if each.exists()] if named.is_dir() else [named]
    found = [values_in(each) for each in files]
    return next((each for each in found if isinstance(each.get("store"), str)), {})


def chosen_store() -> Path | None:
    """The store's directory.

    Raises:
        DrengineError: BAD_CONFIG.
    """
    store = chosen_values().get("store")
    return Path(store) if store else None


def _named() -> Path | None:
    text = os.environ.get(CONFIG_VARIABLE, "")
    return Path(text) if text else None


def _fits(cls: type, path: Path) -> bool:
    """Whether every option is one of this class; a file that can't be read is: reading it says why."""
    try:
        return values_in(path).keys() <= options_of(cls).keys()
    except DrengineError:
        return True
