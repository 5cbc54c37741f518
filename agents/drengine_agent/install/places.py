"""Where everything lies on an installed host, and what is found there now."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from drengine.model.errors import DrengineError
from drengine_agent.install.errors import INSTALL_CONFLICT
from drengine_agent.program import PROGRAM

CONFIG = Path("/etc/drengine/agent.toml")
RECORD = Path("/usr/local/lib/drengine/installed.json")
COMMAND = Path("/usr/local/bin/drengine-agent")
UNIT = Path("/etc/systemd/system/drengine-agent.service")
ENABLED = Path("/etc/systemd/system/multi-user.target.wants/drengine-agent.service")
STATE = Path("/var/lib/drengine-agent")
IDENTITY = STATE / "identity"
"""Where the certificate lies that a token got, as with `drengine-agent enrol`; also where the state is elsewhere."""
RUNTIME = Path("/run/drengine-agent")
CACHE = Path("/var/cache/drengine-agent")
RECORD_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Service:
    """One of the services that the one file can be on a host. The program is there once, for all of them.

    Attributes:
        name: what systemd calls it.
        run: the words that run it, after the program.
        config, record, state, runtime: its own places.
    """

    name: str
    run: str
    config: Path
    record: Path
    state: Path
    runtime: Path

    @property
    def identity(self) -> Path:
        """Where the certificate lies that a token got."""
        return self.state / "identity"

    @property
    def unit(self) -> Path:
        """Its unit."""
        return UNIT.with_name(f"{self.name}.service")

    @property
    def enabled(self) -> Path:
        """The link by which it starts with the host."""
        return ENABLED.with_name(f"{self.name}.service")


AGENT = Service("drengine-agent", "run", CONFIG, RECORD, STATE, RUNTIME)
STANDBY = Service(
    "drengine-standby",
    "standby run",
    Path("/etc/drengine/standby.toml"),
    RECORD.with_name("standby.json"),
    Path("/var/lib/drengine-standby"),
    Path("/run/drengine-standby"),
)


@dataclass(frozen=True)
class Record:
    """What an installation wrote, kept beside it.

    Attributes:
        version: of the agent.
        source: its name, by which the kernel's tracking is found.
        state_directory: where the agent keeps its state.
        files: digests that each file has had by this installer's hand; one that has another was changed by somebody.
        directories: those that it made.
    """

    version: str = ""
    source: str = ""
    state_directory: str = ""
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    directories: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """As it is written."""
        return json.dumps(vars(self), indent=1, sort_keys=True).encode() + b"\n"

    @staticmethod
    def from_bytes(text: bytes, path: Path = RECORD) -> Record:
        """As it was written, in this file.

        Raises:
            DrengineError: INSTALL_CONFLICT, somebody changed it.
        """
        try:
            values = json.loads(text)
            files = {str(name): tuple(map(str, digests)) for name, digests in values["files"].items()}
            names = tuple(str(name) for name in values["directories"])
            return Record(values["version"], values["source"], values["state_directory"], files, names)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DrengineError(INSTALL_CONFLICT, f"{path} is damaged: remove it and install again") from error


@dataclass(frozen=True)
class Present:
    """What is there now.

    Attributes:
        files: digest of each file that is there.
        links: target of each link that is there.
        directories: those of the asked ones that are there.
        record: of the last installation; None without one.
        systemd: `running`, `installed` or `absent`.
        image: an image of another host (--root): nothing is started or asked there.
        service: whose places these are.
        others: other services that run the same program.
        shared: directories that their installation made.
    """

    files: Mapping[Path, str]
    links: Mapping[Path, str]
    directories: frozenset[Path]
    record: Record | None
    systemd: str
    image: bool
    service: Service = AGENT
    others: tuple[Service, ...] = ()
    shared: tuple[str, ...] = ()


def digest(content: bytes) -> str:
    """By which a file is known to be as it was written."""
    return hashlib.sha256(content).hexdigest()


def look(root: Path, directories: Iterable[Path], service: Service = AGENT) -> Present:
    """Look at a service's places, and at these directories and those above them.

    Raises:
        DrengineError: INSTALL_CONFLICT.
    """
    files: dict[Path, str] = {}
    links: dict[Path, str] = {}
    for path in (service.config, PROGRAM, service.record, COMMAND, service.unit, service.enabled):
        here = within(root, path)
        if here.is_symlink():
            links[path] = str(here.readlink())
        elif here.is_file():
            files[path] = digest(here.read_bytes())
        elif here.exists():
            raise DrengineError(INSTALL_CONFLICT, f"{path} is neither a file nor a link")
    wanted = {each for directory in directories for each in (directory, *directory.parents)}
    there = frozenset(each for each in wanted if within(root, each).is_dir())
    records = {each: found for each in (AGENT, STANDBY) if (found := _record(root, each.record)) is not None}
    record = records.pop(service, None)
    shared = tuple(directory for each in records.values() for directory in each.directories)
    return Present(files, links, there, record, _systemd(root), root != Path("/"), service, tuple(records), shared)


def _record(root: Path, path: Path) -> Record | None:
    try:
        with within(root, path).open("rb") as file:
            return Record.from_bytes(file.read(RECORD_BYTES_MAX), path)
    except FileNotFoundError:
        return None


def within(root: Path, path: Path) -> Path:
    """Where a path lies below `root`.

    Raises:
        DrengineError: INSTALL_CONFLICT, a link on the way leads out of `root`.
    """
    here = root / path.relative_to("/")
    if here != root and root != Path("/") and not here.parent.resolve().is_relative_to(root.resolve()):
        raise DrengineError(INSTALL_CONFLICT, f"{path} leads out of {root}")
    return here


def _systemd(root: Path) -> str:
    if root == Path("/"):
        if Path("/run/systemd/system").is_dir():
            return "running"
        return "installed" if shutil.which("systemctl") else "absent"
    there = any((root / name).exists() for name in ("usr/lib/systemd/systemd", "lib/systemd/systemd"))
    return "installed" if there else "absent"
