"""The one-file agent that the authority hands out, and what commands beside the CA know of it.

Anybody may have the file. Whoever fetches it compares its SHA-256 with the one that came on a trusted way.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec

from drengine.durable import replace_durably
from drengine.enrolment.messages import AgentAnswer

PACKAGED = Path("/usr/share/drengine/drengine-agent")
"""Where the server side's package puts it."""
AGENT_FILE = "agent.json"
_VERSION = re.compile(rb"^# drengine-agent ([0-9A-Za-z.+-]{1,40}):", re.MULTILINE)
_HEAD_BYTES = 4096
"""Its version stands among the first of them."""


class Handout:
    """One file, looked at again when it was replaced.

    Attributes:
        path: the file.
        agent: what it is; None while there is none, or it is no agent.
    """

    def __init__(self, path: Path, ca: Path) -> None:
        """`ca` is the CA's directory, where commands find what is handed out."""
        self.path = path
        self.agent: AgentAnswer | None = None
        self._ca = ca
        self._stamp: tuple[int, ...] | None = ()

    def look(self) -> None:
        """Take up a file that was replaced. It reads the whole file then: call it on a thread where others wait.

        Raises:
            OSError: it can't be remembered in the CA's directory.
        """
        stamp = stamp_of(self.path)
        if stamp == self._stamp:
            return
        self.agent = agent_in(self.path) if stamp else None
        replace_durably(self._ca / AGENT_FILE, msgspec.json.encode(self.agent), mode=0o600)
        self._stamp = stamp


def remembered_agent(ca: Path) -> AgentAnswer | None:
    """What the authority with this directory hands out; None where it hands out nothing."""
    try:
        return msgspec.json.decode((ca / AGENT_FILE).read_bytes(), type=AgentAnswer | None)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def agent_in(path: Path) -> AgentAnswer | None:
    """Which one-file agent a file is; None for none."""
    try:
        with path.open("rb") as file:
            version = _VERSION.search(file.read(_HEAD_BYTES))
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except OSError:
        return None
    return AgentAnswer(version[1].decode(), digest, size) if version else None


def stamp_of(path: Path) -> tuple[int, ...] | None:
    """Another one when the file was replaced or written; None without it."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
