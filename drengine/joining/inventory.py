"""An inventory: YAML that names servers and what each is told. Read strictly: every mistake with its line.

defaults: {target: outpost.example:7440, data_networks: [192.0.2.0/24]}
servers:
  shop-1:
  shop-2: {volumes: {data: /dev/vdb}}
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drengine.config import BAD_CONFIG, parse
from drengine.failover.runbook.document import Node
from drengine.failover.runbook.document import parse as parse_document
from drengine.failover.runbook.findings import Finding, Findings, Place, TooMany, did_you_mean
from drengine.joining.server import Server, check_server_name
from drengine.model.errors import DrengineError, error_kind

BAD_INVENTORY = error_kind(
    "bad-inventory",
    168,
    "The inventory has mistakes.",
    "docs/install.md shows one; nothing was made, and no token.",
)
INVENTORY_BYTES_MAX = 1 << 20
KEYS = ("defaults", "servers")
EXAMPLE = "It begins with `servers:` and a name in each line below."


class InventoryError(DrengineError):
    """BAD_INVENTORY with what was found."""

    def __init__(self, where: str, findings: Sequence[Finding]) -> None:
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        super().__init__(BAD_INVENTORY, findings[0].summary(where) + more, hint=findings[0].hint or None)
        self.findings = tuple(findings)


def read_inventory(path: Path) -> dict[str, Server]:
    """The servers by name.

    Raises:
        InventoryError: with all mistakes. DrengineError: BAD_INVENTORY, it can't be read.
    """
    try:
        with path.open("rb") as file:
            text = file.read(INVENTORY_BYTES_MAX + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DrengineError(BAD_INVENTORY, f"{path}: {getattr(error, 'strerror', None) or error}") from error
    findings = Findings()
    servers: dict[str, Server] = {}
    with contextlib.suppress(TooMany):
        servers = _servers(parse_document(text, findings), findings)
    if findings.errors:
        raise InventoryError(str(path), findings.errors)
    return servers


def _servers(root: Node | None, findings: Findings) -> dict[str, Server]:
    if root is None:
        return {}
    if root.entries is None or "servers" not in root.entries:
        findings.add("no-servers", root.place, "", "no servers are named", EXAMPLE)
        return {}
    for key in root.entries:
        if key not in KEYS:
            findings.add("unknown-key", root.keys[key], key, "there is no such key", did_you_mean(key, KEYS))
    defaults = _table(root.entries.get("defaults"), "defaults", findings)
    listed = root.entries["servers"]
    if not listed.entries:
        findings.add("no-servers", listed.place, "servers", "a mapping of names is needed", EXAMPLE)
        return {}
    found = {}
    for name, node in listed.entries.items():
        server = _server(name, listed.keys[name], node, defaults, findings)
        if server is not None:
            found[name] = server
    return found


def _server(name: str, place: Place, node: Node, defaults: Mapping[str, Any], findings: Findings) -> Server | None:
    path = f"servers.{name}"
    try:
        check_server_name(name)
    except DrengineError as error:
        findings.add(error.kind.id, place, path, error.message, error.hint)
        return None
    try:
        server = parse(Server, {**defaults, **_table(node, path, findings)}, where=name)
    except DrengineError as error:
        hint = "docs/configuration.md lists the keys of an inventory." if error.kind is BAD_CONFIG else error.hint
        findings.add(error.kind.id, place, path, error.message, hint)
        return None
    for doubt in server.doubts():
        findings.add("bad-network", place, path, doubt, "Name the network in which the target's address lies.")
    return server


def _table(node: Node | None, path: str, findings: Findings) -> Mapping[str, Any]:
    if node is None or node.builtins() is None:
        return {}
    if node.entries is None:
        findings.add("bad-type", node.place, path, f"a mapping is needed, this is {node.what}", "Write KEY: VALUE.")
        return {}
    found: Mapping[str, Any] = node.builtins()
    return found
