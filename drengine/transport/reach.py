"""Which of several servers is there: asked by a connection that is ended at once."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from drengine.config import Address

SECONDS = 1.0


def first_reached(addresses: Sequence[Address]) -> Address:
    """The first that takes a connection. Blocks.

    Raises:
        OSError: none does, and why the first does not.
    """
    failures = []
    for each in addresses:
        try:
            _reach(each)
        except OSError as error:
            failures.append(error)
        else:
            return each
    raise failures[0]


def _reach(address: Address) -> None:
    if address.path:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(SECONDS)
            probe.connect(address.path)
    else:
        socket.create_connection((address.host, address.port), SECONDS).close()
