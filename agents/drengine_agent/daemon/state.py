"""What the agent remembers between two runs: small facts in one file, replaced whole.

None of it is needed for correctness. If it is lost, volumes get numbers by their order (and are checked against what
the target knows), the target tells under which generation the source ships, if it is in charge, and a target that lost
data is noticed a little less well.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

from drengine.durable import replace_durably
from drengine.linux.identity import evidence_in
from drengine.model.errors import DrengineError
from drengine_agent.errors import AGENT_RUNNING, STATE_DAMAGED


class KnownVolume(msgspec.Struct, frozen=True):
    """A volume's number, never given to another, and what it was when it was last protected.

    Attributes:
        number: inside the source.
        identity: of the disk or file that it lies on.
        declared: what the target knows it as, if that is another disk, which this one replaced; else empty.
        evidence: what it was recognised by (drengine.linux.identity); empty if an older version noted none.
        adopted_ns: when somebody said that it replaces the one before; 0: never.
    """

    number: int
    identity: str
    declared: str = ""
    evidence: dict[str, str] = {}
    adopted_ns: int = 0

    @property
    def evidence_known(self) -> dict[str, str]:
        """What it can be recognised by; of older notes what the identity says by itself."""
        return self.evidence or evidence_in(self.identity)


class AgentState(msgspec.Struct):
    """Contents of state.json.

    Attributes:
        volumes: by name, also those that are no longer protected.
        acknowledged_sequence: a stream position that the target had acknowledged.
        represented_ns: wall clock of the moment that the newest durable point showed; 0: never.
        paused: an operator paused replication.
        generation: the one that this source ships under; a store that has a newer one refuses it. 0: not known, which
            the target tells where the source is in charge.
        tracked_boot: the boot in which the kernel began to track the volumes; empty if it never did.
        branch: that this generation writes at the target, as far as it was told.
    """

    volumes: dict[str, KnownVolume] = msgspec.field(default_factory=dict)
    acknowledged_sequence: int = 0
    represented_ns: int = 0
    paused: bool = False
    generation: int = 0
    branch: int = 1
    tracked_boot: str = ""

    def number_of(self, name: str) -> int:
        """The number of a volume, a new one if the name is new."""
        known = self.volumes.get(name)
        return known.number if known else max((v.number for v in self.volumes.values()), default=0) + 1


def make_state_directory(path: Path) -> None:
    """Make the directory if it is missing.

    Raises:
        DrengineError: STATE_DAMAGED.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise DrengineError(STATE_DAMAGED, f"{path}: {error.strerror}") from error


def read_state(path: Path) -> AgentState:
    """What was saved last in this directory; a fresh state when there is nothing, or nothing readable."""
    try:
        return msgspec.json.decode((path / "state.json").read_bytes(), type=AgentState)
    except (OSError, msgspec.MsgspecError):
        return AgentState()


class StateDirectory:
    """The agent's directory, locked for one process."""

    def __init__(self, path: Path) -> None:
        """Make it if it is missing, and lock it.

        Raises:
            DrengineError: AGENT_RUNNING, STATE_DAMAGED.
        """
        self.path = path
        make_state_directory(path)
        try:
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DrengineError(STATE_DAMAGED, f"{path}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise DrengineError(AGENT_RUNNING, f"{path} is in use by another agent") from error

    def load(self) -> AgentState:
        """What was saved last; a fresh state when there is nothing, or nothing readable."""
        return read_state(self.path)

    def save(self, state: AgentState) -> None:
        """Replace the file, old or new after any crash.

        Raises:
            DrengineError: STATE_DAMAGED.
        """
        try:
            replace_durably(self.path / "state.json", msgspec.json.encode(state))
        except OSError as error:
            raise DrengineError(STATE_DAMAGED, f"{self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Unlock."""
        os.close(self._lock)
