"""What runs now: the one file, the one from a package, or an environment; the last two are kept by somebody else."""

from __future__ import annotations

import sys
from pathlib import Path

PROGRAM = Path("/usr/local/lib/drengine/drengine-agent")
"""The one file where `install` puts it."""
PACKAGED = Path("/usr/bin/drengine-agent")
"""The one file where a package of the distribution puts it (`make packages`); the package manager keeps it."""


def own_archive() -> Path | None:
    """The one file that this process was started from, to be installed; None where somebody else keeps the program."""
    started = started_from()
    return None if started == PACKAGED else started


def start_command() -> str:
    """What the unit starts."""
    started = started_from()
    if started is None:
        return f"{sys.executable} -m drengine_agent"
    return str(PACKAGED if started == PACKAGED else PROGRAM)


def started_from() -> Path | None:
    """The one file that this process was started from, whoever keeps it; None where it runs from an environment."""
    named = getattr(sys.modules["__main__"], "ARCHIVE", "")
    return Path(named).resolve() if named else None
