"""What runs now: the one file, or an environment that somebody else keeps."""

from __future__ import annotations

import sys
from pathlib import Path

from drengine_agent.install.places import PROGRAM


def own_archive() -> Path | None:
    """The one file that this process was started from; None in an environment."""
    named = getattr(sys.modules["__main__"], "ARCHIVE", "")
    return Path(named) if named else None


def start_command(archive: Path | None) -> str:
    """What the unit starts."""
    return str(PROGRAM) if archive else f"{sys.executable} -m drengine_agent"
