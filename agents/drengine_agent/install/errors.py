"""The failures of installing and removing. Exit codes 91 to 93."""

from __future__ import annotations

from drengine.model.errors import error_kind

INSTALL_CONFLICT = error_kind(
    "install-conflict",
    91,
    "Something is in the way that somebody else made or changed.",
    "The message names it; change it by hand, or move it away and try again. Nothing was changed.",
)
INSTALL_FAILED = error_kind(
    "install-failed",
    92,
    "Installing or removing stopped half-way.",
    "Do what the message says and run the same command again: it goes on where it stopped.",
)
PYTHON_UNSUPPORTED = error_kind(
    "python-unsupported",
    93,
    "The one-file agent has nothing for this Python.",
    "Use CPython 3.11 to 3.14 on x86_64 or aarch64; its packages are not needed.",
)
"""Told by the file itself, before anything of the agent is loaded: tools/onefile_start.py."""
