"""What can go wrong when a run acts upon the world, as kinds with exit codes 115 to 117, and 8."""

from __future__ import annotations

from drengine.model.errors import error_kind

CHECK_FAILED = error_kind(
    "check-failed",
    115,
    "A check of a runbook did not pass in time.",
    "The message says what was seen last and what was expected.",
    retryable=True,
)
COMMAND_FAILED = error_kind(
    "command-failed",
    116,
    "A command of a runbook failed or took too long.",
    "Its last output is in the report; run it by hand with the same environment.",
    retryable=True,
)
BAD_REFERENCE = error_kind(
    "bad-reference",
    117,
    "A text of a runbook refers to something that its run does not know.",
    "${SOURCE.KEY} stands for a detail of a launched source, such as its address; the report lists them.",
)
UNSAFE_REFERENCE = error_kind(
    "unsafe-reference",
    8,
    "What a launched workload's host told can't stand where a text of the runbook refers to it.",
    "It could become an option, another address or another command. Look at what that host told, in the run's report; "
    "write the value itself into the runbook if it is right.",
)
