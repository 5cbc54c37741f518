"""What both command lines share: errors for people, tables, progress, units, output for machines."""

from drengine.terminal.frame import INTERNAL, Command, Group, app, lazy_app, main
from drengine.terminal.output import (
    emit_json,
    exact_time,
    human_age,
    human_bytes,
    human_duration,
    human_time,
    is_terminal,
    note,
    progress_bar,
    show_table,
)

__all__ = [
    "INTERNAL",
    "Command",
    "Group",
    "app",
    "emit_json",
    "exact_time",
    "human_age",
    "human_bytes",
    "human_duration",
    "human_time",
    "is_terminal",
    "lazy_app",
    "main",
    "note",
    "progress_bar",
    "show_table",
]
