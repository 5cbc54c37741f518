"""What the machine's cards are plugged into: opened for QEMU to inherit, and gone when nobody holds it any more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from drengine.bubble import Bubble
from drengine.failover.drivers.driver import LaunchRequest
from drengine.failover.drivers.errors import LAUNCH_FAILED
from drengine.failover.drivers.qemu.cards import MachineCard
from drengine.failover.drivers.qemu.settings import BRIDGE, BUBBLE, USER, QemuSettings
from drengine.failover.needs import MachineNetwork
from drengine.linux.taps import open_port
from drengine.model.errors import DrengineError
from drengine.wire.payload import digest


def bubble_of(request: LaunchRequest) -> Bubble:
    """The network that all machines of a drill share."""
    return Bubble(request.run, request.servers)


def network_needs(settings: QemuSettings, *, isolated: bool) -> tuple[MachineNetwork, ...]:
    """What this host must have for the machine's cards."""
    wanted = [settings.network, *(card.network for card in settings.networks)]
    names = dict.fromkeys([settings.drill_network] if isolated else wanted)
    bridges = [MachineNetwork(name.removeprefix(BRIDGE)) for name in names if name.startswith(BRIDGE)]
    return (*bridges, *[MachineNetwork()] * (BUBBLE in names))


@contextmanager
def plugged(request: LaunchRequest, cards: tuple[MachineCard, ...]) -> Iterator[tuple[list[dict[str, Any]], list[int]]]:
    """Each card's backend of QEMU, and the descriptors that it must inherit; ours are closed when this ends.

    Raises:
        DrengineError: LAUNCH_FAILED, BUBBLE_FAILED; a network is not there, or can't be made.
    """
    with ExitStack() as opened:
        backends: list[dict[str, Any]] = []
        descriptors: list[int] = []
        for number, card in enumerate(cards):
            backend, tap = _plug(request, card, number)
            if tap is not None:
                opened.callback(os.close, tap)
                descriptors.append(tap)
            backends.append(backend)
        yield backends, descriptors


def _plug(request: LaunchRequest, card: MachineCard, number: int) -> tuple[dict[str, Any], int | None]:
    if card.network == USER:
        return {"type": "user"}, None
    if card.network == BUBBLE:
        tap = bubble_of(request).tap(request.instance, number)
        return {"type": "tap", "fd": str(tap)}, tap
    bridge = card.network.removeprefix(BRIDGE)
    try:
        tap = open_port(f"dr{digest(request.instance.encode())[:4].hex()}.{number}", bridge)
    except PermissionError:  # QEMU's own helper may: it is root's, with a list of bridges
        return {"type": "bridge", "br": bridge}, None
    except OSError as error:
        raise DrengineError(
            LAUNCH_FAILED,
            f"the machine can't be plugged into the bridge {bridge}: {error.strerror or error}",
            hint="Make the bridge (`ip link add NAME type bridge`), or mend its name in the runbook.",
        ) from error
    return {"type": "tap", "fd": str(tap)}, tap
