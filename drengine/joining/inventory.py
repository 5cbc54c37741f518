"""An inventory: YAML that names servers and what each is told. Read strictly: every mistake with its line.

defaults: {target: outpost.example:7440, data_networks: [192.0.2.0/24]}
servers:
  shop-1:
  shop-2: {volumes: {data: /dev/vdb}}
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from drengine.config import BAD_CONFIG, parse
from drengine.config.options import options_of
from drengine.failover.runbook.document import Node
from drengine.failover.runbook.document import parse as parse_document
from drengine.failover.runbook.findings import Finding, Findings, TooMany, did_you_mean
from drengine.joining.server import RecoveryHost, Server, check_server_name
from drengine.model.errors import DrengineError, error_kind

BAD_INVENTORY = error_kind(
    "bad-inventory",
    168,
    "The inventory has mistakes.",
    "docs/install.md shows one; nothing was made, and no token.",
)
INVENTORY_BYTES_MAX = 1 << 20
KEYS = ("defaults", "servers", "recovery_hosts")
_T = TypeVar("_T", Server, RecoveryHost)
EXAMPLE = "It begins with `servers:` and a name in each line below."


class InventoryError(DrengineError):
    """BAD_INVENTORY with what was found."""

    def __init__(self, where: str, findings: Sequence[Finding]) -> None:
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        super().__init__(BAD_INVENTORY, findings[0].summary(where) + more, hint=findings[0].hint or None)
        self.findings = tuple(findings)


@dataclass(frozen=True)
class Inventory:
    """Who joins, by name."""

    servers: Mapping[str, Server]
    recovery_hosts: Mapping[str, RecoveryHost]


def read_inventory(path: Path) -> Inventory:
    """Who joins by it.

    Raises:
        InventoryError: with all mistakes. DrengineError: BAD_INVENTORY, it can't be read.
    """
    try:
        with path.open("rb") as file:
            text = file.read(INVENTORY_BYTES_MAX + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DrengineError(BAD_INVENTORY, f"{path}: {getattr(error, 'strerror', None) or error}") from error
    findings = Findings()
    found = Inventory({}, {})
    with contextlib.suppress(TooMany):
        found = _inventory(parse_document(text, findings), findings)
    if findings.errors:
        raise InventoryError(str(path), findings.errors)
    return found


def _inventory(root: Node | None, findings: Findings) -> Inventory:
    if root is None:
        return Inventory({}, {})
    entries = root.entries or {}
    if not {"servers", "recovery_hosts"} & entries.keys():
        findings.add("no-servers", root.place, "", "no servers are named", EXAMPLE)
        return Inventory({}, {})
    for key in entries:
        if key not in KEYS:
            findings.add("unknown-key", root.keys[key], key, "there is no such key", did_you_mean(key, KEYS))
    defaults = _table(entries.get("defaults"), "defaults", findings)
    servers = _parties("servers", entries, Server, defaults, findings)
    hosts = _parties("recovery_hosts", entries, RecoveryHost, defaults, findings)
    for name in servers.keys() & hosts.keys():
        what, hint = (
            f"{name} is the name of a server, too",
            "Give it a name of its own: both would have one certificate.",
        )
        findings.add("name-twice", entries["recovery_hosts"].keys[name], f"recovery_hosts.{name}", what, hint)
    return Inventory(servers, hosts)


def _parties(
    key: str, entries: Mapping[str, Node], kind: type[_T], defaults: Mapping[str, Any], findings: Findings
) -> dict[str, _T]:
    listed = entries.get(key)
    if listed is None:
        return {}
    if not listed.entries:
        findings.add("no-servers", listed.place, key, "a mapping of names is needed", EXAMPLE)
        return {}
    known = {name: value for name, value in defaults.items() if kind is Server or name in options_of(kind)}
    found = {}
    for name, node in listed.entries.items():
        path = f"{key}.{name}"
        try:
            check_server_name(name)
            party = parse(kind, {**known, **_table(node, path, findings)}, where=name)
        except DrengineError as error:
            hint = "docs/configuration.md lists the keys of an inventory." if error.kind is BAD_CONFIG else error.hint
            findings.add(error.kind.id, listed.keys[name], path, error.message, hint)
            continue
        for doubt in party.doubts():
            hint = "Name the network in which the target's address lies, and paths from the root on."
            findings.add("bad-value", listed.keys[name], path, doubt, hint)
        found[name] = party
    return found


def _table(node: Node | None, path: str, findings: Findings) -> Mapping[str, Any]:
    if node is None or node.builtins() is None:
        return {}
    if node.entries is None:
        findings.add("bad-type", node.place, path, f"a mapping is needed, this is {node.what}", "Write KEY: VALUE.")
        return {}
    found: Mapping[str, Any] = node.builtins()
    return found
