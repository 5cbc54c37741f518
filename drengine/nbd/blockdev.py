"""An export as QEMU takes it."""

from __future__ import annotations

from typing import Any

from drengine.nbd.client import NbdAddress

RECONNECT_SECONDS = 30


def nbd_node(uri: str) -> dict[str, Any]:
    """An NBD URI as a block node of QEMU; a server that is restarted is waited for.

    Raises:
        DrengineError: NBD_CLIENT, it is none.
    """
    address = NbdAddress.parse(uri)
    if isinstance(address.place, str):
        server = {"type": "unix", "path": address.place}
    else:
        server = {"type": "inet", "host": address.place[0], "port": str(address.place[1])}
    return {"driver": "nbd", "server": server, "export": address.export, "reconnect-delay": RECONNECT_SECONDS}
