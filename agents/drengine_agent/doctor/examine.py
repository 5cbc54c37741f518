"""Examining a host for what a person, or a configuration file, wants to protect."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from drengine.identity.tokens import Invitation
from drengine.model.errors import DrengineError
from drengine_agent.config import AgentConfig, load_config
from drengine_agent.daemon.home import as_housed
from drengine_agent.doctor.errors import DOCTOR_REFUSES
from drengine_agent.doctor.facts import Host, Reach
from drengine_agent.doctor.gather import gather
from drengine_agent.doctor.judge import Report, judge
from drengine_agent.doctor.parties import (
    certificate_troubles,
    program_troubles,
    reached,
    reached_before_enrolling,
)

AUTO = "auto"
TRACKERS = (AUTO, "ebpf", "nbd", "scan")
STATE_DIRECTORY = Path("/var/lib/drengine-agent")
TARGET_CONFIG = Path("/etc/drengine/target.toml")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be protected, and how.

    Attributes:
        volumes: by name.
        tracker: one of TRACKERS.
        state_directory: where the agent would write.
        store: of a target on this host.
        config: the agent's configuration, as it is or would be; None where nobody said anything but volumes.
        token: with which the host would get its certificate.
    """

    volumes: Mapping[str, Path]
    tracker: str = AUTO
    state_directory: Path = STATE_DIRECTORY
    store: Path | None = None
    config: AgentConfig | None = None
    token: Invitation | None = None

    @classmethod
    def read(
        cls,
        config: Path,
        volumes: Mapping[str, Path],
        tracker: str = "",
        state_directory: Path | None = None,
        store: Path | None = None,
    ) -> Asked:
        """What was said, filled up from the configuration file if there is one.

        Raises:
            DrengineError: BAD_CONFIG, DOCTOR_REFUSES.
        """
        if tracker and tracker not in TRACKERS:
            hint = f"One of {', '.join(TRACKERS)}."
            raise DrengineError(DOCTOR_REFUSES, f"there is no tracker {tracker!r}", hint=hint)
        if not config.exists():
            return cls(volumes, tracker or AUTO, state_directory or STATE_DIRECTORY, store or store_here())
        known = cls.of(as_housed(load_config(config)), tracker=tracker, store=store)
        return replace(
            known, volumes=volumes or known.volumes, state_directory=state_directory or known.state_directory
        )

    @classmethod
    def of(
        cls,
        config: AgentConfig,
        *,
        tracker: str = "",
        store: Path | None = None,
        token: Invitation | None = None,
    ) -> Asked:
        """What a configuration says."""
        volumes = {volume.name: volume.path for volume in config.volume}
        return cls(volumes, tracker or config.tracker, config.state_directory, store or store_here(), config, token)


def examine(asked: Asked, *, try_tracker: bool = True) -> tuple[Host, Report]:
    """Look, and judge."""
    places = {"state directory": asked.state_directory, **({"store": asked.store} if asked.store else {})}
    troubles = [*program_troubles()]
    parties: list[Reach] = []
    if asked.config is not None and asked.token is not None:
        parties += reached_before_enrolling(asked.token, asked.config)
    elif asked.config is not None:
        files = [*certificate_troubles(asked.config)]
        troubles += files
        parties += () if files else reached(asked.config)
    host = gather(
        wanted=asked.tracker,
        volumes=asked.volumes,
        places=places,
        parties=parties,
        troubles=troubles,
        try_tracker=try_tracker,
    )
    return host, judge(host)


def store_here(path: Path = TARGET_CONFIG) -> Path | None:
    """The store of a target that is configured on this host: shipping to it would change the disk it lies on."""
    try:
        with path.open("rb") as file:
            named = tomllib.load(file).get("store")
    except (OSError, ValueError):
        return None
    return Path(named) if isinstance(named, str) else None
