"""Files that are written for other programs, and that people may change: what they changed is never overwritten.

A list beside the files says what was written. A file that is as it was written then is brought up to date; one that is
not was changed by somebody: it stays, and the newer one is put beside it.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from drengine.durable import replace_durably
from drengine.model.errors import DrengineError, error_kind
from drengine.ownership import make_directory

MONITORING_FILES = error_kind(
    "monitoring-files",
    207,
    "The files for Prometheus and Grafana can't be written.",
    "Name a directory that this user may write, or run the command as root.",
)
LIST = ".drengine-written.json"
ASIDE = ".drengine-new"
"""Ends the name of a file that is put beside one that somebody changed."""


class State(enum.StrEnum):
    """What becomes of a file."""

    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"
    KEPT = "kept"
    """Somebody changed it: it stays, and the newer one lies beside it."""
    REPLACED = "replaced"
    """Somebody had changed it, and it was to be replaced all the same."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file as it shall be."""

    text: str
    mode: int = 0o644


def write_files(folder: Path, wanted: Mapping[str, Wanted], *, force: bool, dry_run: bool) -> dict[str, State]:
    """Write them, or with `dry_run` only say what would become of each.

    Raises:
        DrengineError: MONITORING_FILES.
    """
    try:
        return _write_files(folder, wanted, force=force, dry_run=dry_run)
    except (OSError, ValueError) as error:
        raise DrengineError(MONITORING_FILES, f"{folder}: {error}") from error


def _write_files(folder: Path, wanted: Mapping[str, Wanted], *, force: bool, dry_run: bool) -> dict[str, State]:
    written = _written(folder)
    states = {name: _state(folder / name, each, written.get(name, ""), force) for name, each in wanted.items()}
    if dry_run:
        return states
    for name, each in wanted.items():
        path, state = folder / name, states[name]
        make_directory(path.parent, mode=0o755)
        if state is State.KEPT:
            path = path.with_name(path.name + ASIDE)
        else:
            written[name] = _digest(each.text)
        if state is not State.UNCHANGED:
            replace_durably(path, each.text.encode(), mode=each.mode)
    if _written(folder) != written:
        replace_durably(folder / LIST, msgspec.json.format(msgspec.json.encode(written)), mode=0o644)
    return states


def _state(path: Path, wanted: Wanted, written: str, force: bool) -> State:
    try:
        present = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return State.CREATED
    if present == wanted.text:
        return State.UNCHANGED
    if _digest(present) == written:
        return State.UPDATED
    return State.REPLACED if force else State.KEPT


def _written(folder: Path) -> dict[str, str]:
    try:
        return msgspec.json.decode((folder / LIST).read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        return {}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
