"""How a report is refused: exit code 120."""

from __future__ import annotations

from drengine.model.errors import error_kind

REPORT_UNAVAILABLE = error_kind(
    "report-unavailable",
    120,
    "A report can't be read or written.",
    "`drengine reports list` lists those that are kept; the message says what is wrong with the place.",
)
