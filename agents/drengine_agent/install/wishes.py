"""What a person says about an installation, and the values of a configuration that come of it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drengine.config import BAD_CONFIG
from drengine.enrolment.place import Place
from drengine.model.errors import DrengineError
from drengine_agent.beneath import identity
from drengine_agent.install.configuration import merged
from drengine_agent.install.disks import mounted_disks
from drengine_agent.install.places import CONFIG, IDENTITY, STATE, within


@dataclass(frozen=True, slots=True)
class Wishes:
    """Options of `install`. What is empty or None was not said: it stays as it is, or gets its default.

    Attributes:
        volumes: paths by name; they replace those of before.
        all_disks: protect every disk with mounted file systems, besides the volumes.
        tls: `certificate`, `key` and `ca`, for the target and the broker.
        token: with which the host gets its certificate; see `IDENTITY`.
        others: further options by their path, such as `control.address`.
    """

    source: str = ""
    target: str = ""
    volumes: Mapping[str, Path] = field(default_factory=dict)
    all_disks: bool = False
    tracker: str = ""
    state_directory: Path | None = None
    tls: Mapping[str, Path] = field(default_factory=dict)
    token: str = ""
    others: Mapping[str, Any] = field(default_factory=dict)

    def values(self, before: Mapping[str, Any], *, is_enrolled: bool) -> dict[str, Any]:
        """The configuration's values: those of `before` with what is wished.

        `is_enrolled` says whether this host has a certificate of its own in `IDENTITY`, or will get one by the token.
        """
        changes: dict[str, Any] = {}
        for path, value in self.others.items():
            *tables, key = path.split(".")
            for table in reversed(tables):
                key, value = table, {key: value}  # noqa: PLW2901 - from the inside out
            changes = merged(changes, {key: value})
        plain = {"source": self.source, "target": self.target, "tracker": self.tracker}
        changes = merged(changes, {key: value for key, value in plain.items() if value})
        if self.state_directory not in (None, STATE):
            changes["state_directory"] = str(self.state_directory)
        files = {name: str(path.absolute()) for name, path in self.tls.items()}
        if not files and is_enrolled and "tls" not in before:
            place = Place(IDENTITY).files
            files = {"certificate": str(place.certificate), "key": str(place.key), "ca": str(place.ca)}
        if files:
            changes = merged(changes, {"tls": files})
        wanted = merged(before, changes)
        if wanted.get("control", {}).get("address") and "certificate" not in wanted["control"] and "tls" in wanted:
            wanted["control"] = merged(wanted["control"], wanted["tls"])
        if volumes := self._volumes(before.get("volume", [])):
            wanted.pop("volume", None)
            wanted["volume"] = volumes
        return wanted

    def _volumes(self, before: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Volumes that are wished, or those of before; with `all_disks` also the disks that none of them is.

        A disk that is protected already keeps its name: the kernel may call it otherwise after a reboot.

        Raises:
            DrengineError: BAD_CONFIG, with `all_disks`, where nothing is found.
        """
        found = [{"name": name, "path": str(path)} for name, path in self.volumes.items()] or before
        if not self.all_disks:
            return found
        known = {_identity_of(Path(each["path"])) for each in found}
        disks = [each for each in mounted_disks() if _identity_of(each.path) not in known]
        if not found and not disks:
            hint = "Name what to protect: `--volume NAME=PATH`. Loop, memory and removable devices are never proposed."
            raise DrengineError(BAD_CONFIG, "no disk of this server holds a mounted file system", hint=hint)
        return [*found, *({"name": disk.name, "path": str(disk.path)} for disk in disks)]


def installed_values(root: Path, config: Path = CONFIG) -> dict[str, Any]:
    """The values in the configuration file that is there, by default the agent's; none without one.

    Raises:
        DrengineError: BAD_CONFIG.
    """
    path = within(root, config)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DrengineError(BAD_CONFIG, f"{path}: {error}") from error


def _identity_of(path: Path) -> object:
    try:
        return identity(path)
    except OSError:
        return path
