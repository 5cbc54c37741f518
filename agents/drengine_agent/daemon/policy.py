"""What the site decided for this source, beside the agent's own file: kept in the state directory, so that it holds
before a broker is there and after a restart.

The agent's own file wins for the settings that its option `control.local_settings` names.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from drengine.config.kinds import show_duration
from drengine.durable import replace_durably
from drengine.model.errors import DrengineError
from drengine_agent.config import SITE_SETTINGS, AgentConfig, with_settings
from drengine_agent.cuts.config import CutOptions
from drengine_agent.errors import STATE_DAMAGED

log = logging.getLogger("drengine.agent")

FILE = "policy.json"
_DEFAULT: dict[str, Any] = {each.name: each.default for each in fields(AgentConfig)}


class _Kept(msgspec.Struct, frozen=True):
    """Contents of the file: values by setting, and what the orchestrator calls them all."""

    settings: dict[str, str] = {}
    digest: str = ""


class SitePolicy:
    """One agent's.

    Attributes:
        own: the agent's own configuration.
    """

    def __init__(self, own: AgentConfig) -> None:
        self.own = own
        self._path: Path = own.state_directory / FILE
        self._kept = self._load()

    @property
    def digest(self) -> str:
        """What the orchestrator calls the values that were taken; empty: none."""
        return self._kept.digest

    @property
    def config(self) -> AgentConfig:
        """By which the agent goes."""
        return with_settings(self.own, self._counting)

    @property
    def in_use(self) -> dict[str, tuple[str, str]]:
        """Each setting's value, and whether it comes from the `policy`, our `file`, or is the `default`."""
        config, counting = self.config, self._counting
        values: dict[str, tuple[str, str]] = {
            "cuts": (config.cuts.kinds, CutOptions().kinds),
            "bandwidth": (config.bandwidth, _DEFAULT["bandwidth"]),
            "point_interval": (show_duration(config.point_interval), show_duration(_DEFAULT["point_interval"])),
        }
        return {
            name: (value, "policy" if name in counting else "default" if value == usual else "file")
            for name, (value, usual) in values.items()
        }

    def take(self, settings: Mapping[str, str], digest: str) -> AgentConfig:
        """Go by these values from now on; gives the configuration that results.

        Raises:
            DrengineError: BAD_CONFIG, nothing has changed; STATE_DAMAGED.
        """
        known = {name: str(value) for name, value in settings.items() if name in SITE_SETTINGS}
        with_settings(self.own, known)
        kept = _Kept(known, digest)
        try:
            replace_durably(self._path, msgspec.json.encode(kept))
        except OSError as error:
            raise DrengineError(STATE_DAMAGED, f"{self._path}: {error.strerror}") from error
        self._kept = kept
        return self.config

    @property
    def _counting(self) -> dict[str, str]:
        local = self.own.control.local_settings
        return {name: value for name, value in self._kept.settings.items() if name not in local}

    def _load(self) -> _Kept:
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=_Kept)
            with_settings(self.own, kept.settings)
        except FileNotFoundError:
            return _Kept()
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, DrengineError) as error:
            log.warning("%s is not taken: %s. The orchestrator tells it again", self._path, error)
            return _Kept()
        return kept
