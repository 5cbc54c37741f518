"""What shall be installed, from what a person said and from what this process runs from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from drengine import __version__
from drengine_agent.config import AgentConfig, load_config
from drengine_agent.doctor.gather import place_of
from drengine_agent.install.configuration import configuration_text
from drengine_agent.install.places import CONFIG, RUNTIME, STATE, within
from drengine_agent.install.plan import Wanted
from drengine_agent.install.program import own_archive, start_command
from drengine_agent.install.unit import unit_text


@dataclass(frozen=True, slots=True)
class Said:
    """A person's wishes for the configuration.

    Attributes:
        volumes: paths by name.
        tracker: `ebpf`, `nbd` or `scan`.
        tls: `certificate`, `key` and `ca`; empty for a target on loopback.
    """

    source: str
    target: str
    volumes: Mapping[str, Path]
    tracker: str
    state_directory: Path
    tls: Mapping[str, Path]
    listen: str = ""

    @property
    def config(self) -> bytes:
        """The configuration file.

        Raises:
            DrengineError: BAD_CONFIG.
        """
        return configuration_text(
            self.source,
            self.target,
            self.volumes,
            tracker=self.tracker,
            listen=self.listen,
            state_directory=None if self.state_directory == STATE else self.state_directory,
            tls=self.tls,
        ).encode()


def installed_config(root: Path) -> AgentConfig | None:
    """The configuration that is there; None without one.

    Raises:
        DrengineError: BAD_CONFIG.
    """
    path = within(root, CONFIG)
    return load_config(path) if path.exists() else None


def wanted_from(said: Said | None, config: AgentConfig | None, *, start: bool) -> Wanted:
    """An installation with a new configuration (`said`), or with the one that is there.

    Raises:
        DrengineError: BAD_CONFIG.
    """
    if said is not None:
        source, state, tracker = said.source, said.state_directory, said.tracker
        paths = list(said.volumes.values())
    else:
        assert config is not None
        source, state, tracker = config.source, config.state_directory, config.tracker
        paths = [volume.path for volume in config.volume]
    archive = own_archive()
    unit = unit_text(
        command=start_command(),
        state_directory=state,
        writes_volumes=paths if tracker == "nbd" else None,
    )
    program = archive.read_bytes() if archive else None
    return Wanted(__version__, source, state, program, said.config if said else None, unit.encode(), start=start)


def default_state_directory(volumes: Mapping[str, Path], root: Path) -> Path:
    """Beside other services' state; on a server whose only disk is protected, in memory.

    Nothing is lost with it that a reboot would not cost anyhow: the kernel's tracking ends there, too.
    """
    if root != Path("/"):
        return STATE
    return RUNTIME / "state" if place_of("state directory", STATE, volumes).on_volumes else STATE
