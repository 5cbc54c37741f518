"""Examining a host for what a person, or a configuration file, wants to protect."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from drengine.config import ADDRESS, Address
from drengine.model.errors import DrengineError
from drengine_agent.config import AgentConfig, load_config
from drengine_agent.doctor.errors import DOCTOR_REFUSES
from drengine_agent.doctor.facts import Host
from drengine_agent.doctor.gather import gather
from drengine_agent.doctor.judge import Report, judge

TRACKERS = ("auto", "ebpf", "nbd", "scan")
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
        target: where the agent would ship to.
    """

    volumes: Mapping[str, Path]
    tracker: str = "auto"
    state_directory: Path = STATE_DIRECTORY
    store: Path | None = None
    target: Address | None = None

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
        if tracker:
            _check_tracker(tracker)
        known: AgentConfig | None = load_config(config) if config.exists() else None
        if known is None:
            return cls(volumes, tracker or "auto", state_directory or STATE_DIRECTORY, store or store_here())
        return cls(
            volumes or {volume.name: volume.path for volume in known.volume},
            tracker or known.tracker,
            state_directory or known.state_directory,
            store or store_here(),
            known.target,
        )

    @classmethod
    def of(
        cls, volumes: Mapping[str, Path], tracker: str, state_directory: Path, store: Path | None, target: str
    ) -> Asked:
        """What a person said; the target as it is written.

        Raises:
            DrengineError: DOCTOR_REFUSES.
        """
        try:
            address = ADDRESS.parse(target)
        except ValueError as error:
            raise DrengineError(DOCTOR_REFUSES, f"target {target!r}: {error}", hint="Write HOST:PORT.") from error
        _check_tracker(tracker)
        return cls(volumes, tracker, state_directory, store, address)


def _check_tracker(tracker: str) -> None:
    if tracker not in TRACKERS:
        raise DrengineError(DOCTOR_REFUSES, f"there is no tracker {tracker!r}", hint=f"One of {', '.join(TRACKERS)}.")


def examine(asked: Asked, *, try_tracker: bool = True) -> tuple[Host, Report]:
    """Look, and judge."""
    places = {"state directory": asked.state_directory, **({"store": asked.store} if asked.store else {})}
    host = gather(
        wanted=asked.tracker, volumes=asked.volumes, places=places, target=asked.target, try_tracker=try_tracker
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
