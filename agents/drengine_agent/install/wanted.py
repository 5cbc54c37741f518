"""What shall be installed, from what a person said and from what this process runs from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from drengine import __version__
from drengine_agent.config import AgentConfig
from drengine_agent.doctor.gather import place_of
from drengine_agent.install.acts import Act
from drengine_agent.install.places import IDENTITY, RUNTIME, STATE
from drengine_agent.install.plan import Wanted
from drengine_agent.install.unit import unit_text
from drengine_agent.program import own_archive, start_command


def wanted_from(
    config: AgentConfig, text: bytes | None, *, start: bool, first: tuple[Act, ...] = (), last: tuple[Act, ...] = ()
) -> Wanted:
    """An installation with this configuration; `text` is its file's, None where that stays as it is."""
    archive = own_archive()
    files = config.tls.files()
    unit = unit_text(
        command=start_command(),
        state_directory=config.state_directory,
        writes_volumes=[volume.path for volume in config.volume] if config.tracker == "nbd" else None,
        holds_identity=files is not None and files.certificate.parent == IDENTITY,
    )
    program = archive.read_bytes() if archive else None
    return Wanted(
        __version__,
        config.source,
        config.state_directory,
        program,
        text,
        unit.encode(),
        start=start,
        first=first,
        last=last,
    )


def default_state_directory(volumes: Mapping[str, Path], root: Path) -> Path:
    """Beside other services' state; on a server whose only disk is protected, in memory.

    Nothing is lost with it that a reboot would not cost anyhow: the kernel's tracking ends there, too.
    """
    if root != Path("/"):
        return STATE
    return RUNTIME / "state" if place_of("state directory", STATE, volumes).on_volumes else STATE
