"""What both command lines share: errors for people, tables, progress, units, output for machines."""

from drengine.terminal.frame import INTERNAL, Command, Group, app, lazy_app, main
from drengine.terminal.output import (
    emit_json,
    exact_time,
    human_age,
    human_bytes,
    human_duration,
    human_time,
    is_agreed,
    is_terminal,
    live_tree,
    note,
    progress_bar,
    show_table,
)
from drengine.terminal.tree import Branch

__all__ = [
    "INTERNAL",
    "Branch",
    "Command",
    "Group",
    "app",
    "emit_json",
    "exact_time",
    "human_age",
    "human_bytes",
    "human_duration",
    "human_time",
    "is_agreed",
    "is_terminal",
    "lazy_app",
    "live_tree",
    "main",
    "note",
    "progress_bar",
    "show_table",
]
