"""Parts that installed packages bring as entry points, beside our own of the same kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from drengine.model.errors import DrengineError, ErrorKind


@dataclass(frozen=True)
class Plugins:
    """One kind of part.

    Attributes:
        group: the group of entry points, `drengine.storages` for example.
        noun: what a part is called in errors.
        ours: names and `module:attribute` of those that come with drengine. They are loaded by name, so that a checkout
            that was never installed has them too, and no installed package replaces them.
        unknown: the kind of error when a part is not there, or can't be loaded.
    """

    group: str
    noun: str
    ours: Mapping[str, str]
    unknown: ErrorKind

    def available(self) -> dict[str, str]:
        """Names, and where the parts come from."""
        metadata = import_module("importlib.metadata")  # slow, and not needed for what is ours
        return {each.name: each.value for each in metadata.entry_points(group=self.group)} | dict(self.ours)

    def place_of(self, name: str) -> str:
        """Where the part of that name comes from; nothing is loaded.

        Raises:
            DrengineError: `unknown`.
        """
        known = self.ours if name in self.ours else self.available()
        if name not in known:
            listed = ", ".join(sorted(known))
            raise DrengineError(self.unknown, f"there is no {self.noun} {name[:80]!r}; there are {listed}")
        return known[name]

    def load(self, name: str) -> Any:
        """What stands under that name: a class or a function.

        Raises:
            DrengineError: `unknown`.
        """
        module, _, attribute = self.place_of(name).partition(":")
        try:
            return getattr(import_module(module), attribute)
        except Exception as error:  # third-party code may raise anything
            raise DrengineError(self.unknown, f"{self.noun} {name!r} can't be loaded: {error}") from error
