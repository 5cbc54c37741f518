"""What installing and removing can do, as values: a plan is a list of them and can be shown without being done."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from drengine.identity.names import Role


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    """A directory that is not there yet."""

    path: Path
    mode: int

    def __str__(self) -> str:
        return f"make    {self.path}/ ({self.mode:o})"


@dataclass(frozen=True, slots=True)
class WriteFile:
    """A file, replaced whole: old or new at any moment.

    Attributes:
        quiet: the installer's own records; not shown.
    """

    path: Path
    content: bytes
    mode: int
    replaces: bool = False
    quiet: bool = False

    def __str__(self) -> str:
        return f"{'replace' if self.replaces else 'write  '} {self.path} ({self.mode:o}, {len(self.content):,} bytes)"


@dataclass(frozen=True, slots=True)
class MakeLink:
    """A symbolic link."""

    path: Path
    target: str

    def __str__(self) -> str:
        return f"link    {self.path} -> {self.target}"


@dataclass(frozen=True, slots=True)
class Remove:
    """A file or link, or with `whole` a directory and everything in it."""

    path: Path
    whole: bool = False

    def __str__(self) -> str:
        return f"remove  {self.path}{'/ and everything in it' if self.whole else ''}"


@dataclass(frozen=True, slots=True)
class RemoveEmpty:
    """A directory, if nothing is left in it."""

    path: Path

    def __str__(self) -> str:
        return f"remove  {self.path}/ if nothing is left in it"


@dataclass(frozen=True, slots=True)
class CheckStopped:
    """Nothing is removed under the feet of an agent that somebody else runs."""

    state_directory: Path

    def __str__(self) -> str:
        return "check   that no agent runs"


@dataclass(frozen=True, slots=True)
class Untrack:
    """Remove the kernel's tracking of a source."""

    source: str

    def __str__(self) -> str:
        return f"untrack {self.source}: take the tracker out of the kernel"


@dataclass(frozen=True, slots=True)
class Run:
    """A program of the system."""

    arguments: tuple[str, ...]
    may_fail: bool = False

    def __str__(self) -> str:
        return f"run     {' '.join(self.arguments)}"


@dataclass(frozen=True, slots=True)
class Enrol:
    """Get this host's certificate by a token."""

    source: str
    token: str = field(repr=False)
    folder: Path
    role: Role = Role.AGENT

    def __str__(self) -> str:
        return f"enrol   as {self.role}/{self.source}, into {self.folder}/"


@dataclass(frozen=True, slots=True)
class TrySession:
    """Open a session with the target and leave it, and connect with the broker, before anything is written.

    Attributes:
        config: the text of the configuration that will be written.
        seconds: how long a target is waited for that is not there.
    """

    config: bytes = field(repr=False)
    seconds: float

    def __str__(self) -> str:
        return "try     the session with the target"


@dataclass(frozen=True, slots=True)
class TryOrders:
    """Connect with a recovery host's broker and leave it, before anything is written.

    Attributes:
        config: the text of the configuration that will be written.
        seconds: how long a broker is waited for that is not there.
    """

    config: bytes = field(repr=False)
    seconds: float

    def __str__(self) -> str:
        return "try     the connection with the broker"


@dataclass(frozen=True, slots=True)
class AwaitSession:
    """Wait for the running agent's session and its first point.

    Attributes:
        control_socket: where the agent answers.
        seconds: how long at most.
    """

    control_socket: Path
    seconds: float

    def __str__(self) -> str:
        return f"wait    for the session and the first point, at most {self.seconds:g} s"


Act = (
    Enrol
    | TrySession
    | TryOrders
    | AwaitSession
    | MakeDirectory
    | WriteFile
    | MakeLink
    | Remove
    | RemoveEmpty
    | CheckStopped
    | Untrack
    | Run
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Acts in their order.

    Attributes:
        acts: to be carried out.
        notes: what a person should know: what was kept, what is not done here.
    """

    acts: tuple[Act, ...]
    notes: tuple[str, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether anything will be other than before."""
        return any(not isinstance(act, TrySession | TryOrders | AwaitSession | Run) for act in self.acts)

    @property
    def shown(self) -> list[str]:
        """A line for each act that matters to a person."""
        return [str(act) for act in self.acts if not (isinstance(act, WriteFile) and act.quiet)]
