"""The failures of installing and removing. Exit codes 14, 57, 91 to 93."""

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
ONE_FILE_DAMAGED = error_kind(
    "one-file-damaged",
    14,
    "The one-file agent is cut short or damaged.",
    "Copy it to this host again, and compare its sha256sum with that of where it comes from.",
)
CACHE_UNUSABLE = error_kind(
    "cache-unusable",
    57,
    "The one-file agent finds no place where it can unpack itself.",
    "Free some space there (60 MB are enough), or name another folder: DRENGINE_CACHE=FOLDER.",
)
"""Told by the file itself, before anything of the agent is loaded: tools/onefile_start.py, and the shell script in
tools/onefile.py."""
