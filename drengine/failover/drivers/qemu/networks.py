"""What the machine's cards are plugged into, opened for QEMU to inherit: it takes nothing to clean up after it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from drengine.failover.drivers.errors import LAUNCH_FAILED
from drengine.failover.drivers.qemu.cards import MachineCard
from drengine.failover.drivers.qemu.settings import BRIDGE
from drengine.linux.taps import open_tap
from drengine.model.errors import DrengineError


@contextmanager
def plugged(cards: tuple[MachineCard, ...]) -> Iterator[tuple[list[dict[str, Any]], list[int]]]:
    """Each card's backend of QEMU, and the descriptors that it must inherit; ours are closed when this ends.

    Raises:
        DrengineError: LAUNCH_FAILED, a network is not there.
    """
    with ExitStack() as opened:
        backends: list[dict[str, Any]] = []
        descriptors: list[int] = []
        for card in cards:
            backend, inherited = _plug(card)
            for descriptor in inherited:
                opened.callback(os.close, descriptor)
            backends.append(backend)
            descriptors += inherited
        yield backends, descriptors


def _plug(card: MachineCard) -> tuple[dict[str, Any], list[int]]:
    if card.network == "user":
        return {"type": "user"}, []
    bridge = card.network.removeprefix(BRIDGE)
    try:
        tap = open_tap(bridge)
    except PermissionError:  # QEMU's own helper may know better: it is root's, with a list of bridges
        return {"type": "bridge", "br": bridge}, []
    except OSError as error:
        raise DrengineError(
            LAUNCH_FAILED,
            f"the machine can't be plugged into the bridge {bridge}: {error.strerror or error}",
            hint="Make the bridge (`ip link add NAME type bridge`), or mend its name in the runbook.",
        ) from error
    return {"type": "tap", "fd": str(tap)}, [tap]
