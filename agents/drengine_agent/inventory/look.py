"""One look at this server. What can't be read is left out; whatever a server has, the inventory keeps its bounds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from drengine.model.inventory import DOCUMENT_BYTES_MAX, ENTRIES_MAX, Inventory, faults, pack_inventory
from drengine_agent.inventory.network import network_facts
from drengine_agent.inventory.services import Services
from drengine_agent.inventory.storage import storage_facts
from drengine_agent.inventory.system import resolver_facts, system_facts

log = logging.getLogger("drengine.agent")


class Look:
    """Looks at this server, again and again."""

    def __init__(self, volumes: Mapping[str, Path], *, root: Path = Path("/")) -> None:
        """`volumes`: paths of what is replicated, by name; `root`: where `proc`, `sys`, `etc`, `run` and `var` are."""
        self._volumes = volumes
        self._root = root
        self._services = Services()

    def __call__(self, now_ns: int) -> Inventory:
        """What it is made of; `now_ns` is the time, by its clock."""
        root = self._root
        parts: tuple[Callable[[], dict[str, Any]], ...] = (
            lambda: system_facts(root),
            lambda: storage_facts(root, self._volumes),
            lambda: network_facts(root),
            lambda: resolver_facts(root),
            lambda: self._services.facts(root),
        )
        facts: dict[str, Any] = {}
        for part in parts:
            try:
                facts |= part()
            except (OSError, ValueError, ArithmeticError) as error:  # a file of another form than any known
                log.warning("a part of the inventory was not found: %s: %s", type(error).__name__, error)
        return fitting(Inventory(taken_ns=now_ns, **facts))


def fitting(inventory: Inventory) -> Inventory:
    """The same within the bounds of what can be told: without entries that are not possible, and not too many."""
    changes: dict[str, Any] = {}
    for name in inventory.__struct_fields__:
        value = getattr(inventory, name)
        if isinstance(value, tuple):
            changes[name] = tuple(each for each in map(_fitting_entry, value) if not any(faults(each)))[:ENTRIES_MAX]
        elif any(faults(value)):
            changes[name] = type(value)()
    inventory = msgspec.structs.replace(inventory, **changes)
    while len(pack_inventory(inventory)) > DOCUMENT_BYTES_MAX:
        longest = max(_lists(inventory), key=lambda name: len(msgspec.json.encode(getattr(inventory, name))))
        kept = getattr(inventory, longest)
        inventory = msgspec.structs.replace(inventory, **{longest: kept[: len(kept) // 2]})
    return inventory


def _fitting_entry(entry: Any) -> Any:
    """A value of a list, its own lists cut."""
    if not isinstance(entry, msgspec.Struct):
        return entry
    lists = {name: getattr(entry, name) for name in _lists(entry)}
    cut = {name: tuple(each for each in found if not any(faults(each)))[:ENTRIES_MAX] for name, found in lists.items()}
    return msgspec.structs.replace(entry, **cut)


def _lists(value: msgspec.Struct) -> list[str]:
    return [name for name in value.__struct_fields__ if isinstance(getattr(value, name), tuple)]
