"""A way to capture: open volumes, the tracker that sees their changes, and all else that an agent asks of the two.

Each way is a class, which the registry (`drengine_agent/trackers.py`) finds by the name in the configuration. What the
pipeline asks of a tracker stands in `tracker.py`; what most ways answer alike is answered here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from drengine.config import BAD_CONFIG, parse
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.model.points import VolumeGeometry
from drengine_agent.capture.backing import Volume
from drengine_agent.capture.figures import Figures
from drengine_agent.capture.indexes import HashIndexes
from drengine_agent.capture.tracker import CallOnChange, Readable, Tracker
from drengine_agent.config import AgentConfig


class VolumeResizedError(Exception):
    """A volume that is scanned or tracked has another size: open everything again and declare it."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What a capture is opened with.

    Attributes:
        config: the agent's.
        volumes: open, by number; the capture closes them.
        clock: the agent's.
        tracked_boot: the boot in which the kernel began to track these volumes, as far as the agent remembers.
    """

    config: AgentConfig
    volumes: Mapping[int, Volume]
    clock: Clock
    tracked_boot: str = ""


class Capture:
    """See the module.

    Attributes:
        writable: volumes are opened for writing, and by nobody else.
        serves: clients use the volumes through us, so we can stop them.
        idle_seconds: how often the tracker is asked while there is nothing to do.
        call_on_change: None if the tracker can only be asked. Else `call_on_change(since, call)` has `call`, which is
            quick, called once, in any thread, at the first change after `since`, unless there is one already (False).
            The newest request replaces the one before.
        gather_seconds: how often a tracker that calls is asked while something is under way to the target.
        figures_class: of what `figures` answers.
        options_class: what `tracker_options` may hold, as fields made with `drengine.config.option`; None: nothing.
        tracker: sees the changes.
        volumes: by number.
        indexes: hashes of what is durable at the target, where comparing needs them.
        tracked_boot: the boot in which the kernel tracks the volumes; empty where it does not.
    """

    writable: ClassVar[bool] = False
    serves: ClassVar[bool] = False
    idle_seconds: ClassVar[float] = 0.02
    figures_class: ClassVar[type[Figures]] = Figures
    options_class: ClassVar[type | None] = None

    call_on_change: CallOnChange | None = None
    gather_seconds: float = 0.02
    indexes: HashIndexes | None = None
    tracked_boot: str = ""

    def __init__(self, tracker: Tracker, volumes: Mapping[int, Volume]) -> None:
        self.tracker = tracker
        self.volumes = volumes

    @classmethod
    def check_config(cls, config: AgentConfig) -> None:
        """Refuse what can't be had in this way.

        Raises:
            DrengineError: BAD_CONFIG.
        """
        if config.control.lease and not cls.serves:
            why = f"tracker {config.tracker} does not serve the volumes, so the agent can't stop serving them"
            raise DrengineError(BAD_CONFIG, f"option control.lease: {why}")
        if cls.options_class is not None:
            parse(cls.options_class, config.tracker_options, where="tracker_options")
        elif config.tracker_options:
            raise DrengineError(BAD_CONFIG, f"tracker {config.tracker} takes no tracker_options")

    @classmethod
    def open(cls, opening: Opening) -> Self:
        """Begin to track, or take it up.

        Raises:
            DrengineError: a volume is unsupported, or what tracking needs can't be had. Nothing is left open then,
                except the volumes.
        """
        raise NotImplementedError

    @property
    def geometry(self) -> tuple[VolumeGeometry, ...]:
        """The volumes as they are declared."""
        return tuple(volume.geometry for volume in self.volumes.values())

    @property
    def readers(self) -> Mapping[int, Readable]:
        """How the volumes are read."""
        return self.volumes

    def check(self) -> None:
        """Look whether the volumes are still what they were.

        Raises:
            DrengineError: one is missing or was replaced. VolumeResizedError.
        """
        for volume in self.volumes.values():
            if volume.check() != volume.size_bytes:
                raise VolumeResizedError(volume.name)

    def hurry(self) -> None:
        """Somebody waits for a point: find or force one before its time, if that is allowed. Must be quick."""

    def tune(self, config: AgentConfig) -> None:
        """Go by these `point_interval` and `cuts` from now on, as far as the tracker does; any thread."""

    def figures(self) -> Figures:
        """What it tells of itself now; any thread."""
        return self.figures_class()

    @property
    def is_serving(self) -> bool:
        """Whether clients may use the volumes through us now."""
        return False

    def serve(self, *, held: bool = False) -> None:
        """Let clients use the volumes, once `admit` was called if they are `held` back until then.

        Raises:
            DrengineError: NBD_LISTEN.
        """

    def admit(self) -> None:
        """Hold clients back no longer."""

    def stop_serving(self, *, cut: bool) -> None:
        """Serve nobody any more: in peace, or `cut` off with nothing more said to anyone."""

    def let_go(self) -> None:
        """Close what else was opened; tracking has ended, the volumes are still open."""

    def close(self) -> None:
        """Serve nobody any more, stop tracking cleanly, let go of the volumes."""
        self.stop_serving(cut=False)
        self.tracker.close()
        self.let_go()
        for volume in self.volumes.values():
            volume.close()
