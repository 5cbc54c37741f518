"""Which of several servers is there: asked by a connection that is ended at once."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress

from drengine.config import Address

SECONDS = 1.0


def first_reached(addresses: Sequence[Address]) -> Address:
    """The first that takes a connection. Where none does, the first: whoever uses it is told why. Blocks.

    A single address is not asked.
    """
    if len(addresses) == 1:
        return addresses[0]
    for each in addresses:
        with suppress(OSError):
            reach(each)
            return each
    return addresses[0]


def reach(address: Address) -> None:
    """Return when somebody takes a connection there. Blocks.

    Raises:
        OSError: nobody does.
    """
    if address.path:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(SECONDS)
            probe.connect(address.path)
    else:
        socket.create_connection((address.host, address.port), SECONDS).close()
