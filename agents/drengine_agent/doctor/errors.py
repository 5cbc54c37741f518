"""The doctor's one failure."""

from __future__ import annotations

from drengine.model.errors import error_kind

DOCTOR_REFUSES = error_kind(
    "doctor-refuses",
    90,
    "This host can't be protected as asked.",
    "`drengine-agent doctor` says what stands in the way and what to do about each.",
)
