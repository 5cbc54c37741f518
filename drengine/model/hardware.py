"""What a recovered server finds where it is launched: its machine and its network cards."""

from __future__ import annotations

import msgspec


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """A network card of a recovered server, and what the guest is to know of its network.

    Attributes:
        name: the source's interface that it takes the place of; empty: of none.
        mac: its address; empty: whatever the machine gives it.
        dhcp: the guest asks for its addresses; then `addresses` only say what it is expected to get.
        addresses: with prefix lengths.
        gateway: of the default route; empty: none by this card.
        routes: further ones, from network to gateway.
        name_servers, search: for the guest's resolver.
        mtu: in bytes.
    """

    name: str = ""
    mac: str = ""
    dhcp: bool = False
    addresses: tuple[str, ...] = ()
    gateway: str = ""
    routes: dict[str, str] = {}
    name_servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    mtu: int = 1500


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """A recovered server as the others of its run know it.

    Attributes:
        names: that lead to it, without a domain.
        cards: its network cards; empty: nobody knows them.
    """

    names: tuple[str, ...]
    cards: tuple[Card, ...] = ()


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What a launch driver's machine offers to the guest, for which the guest's disks are prepared.

    Attributes:
        disk_bus: `virtio`, `nvme`, `sata`, `scsi` or `xen`.
        card: `virtio`, `ena` or `e1000`.
        firmware: `bios` or `uefi`.
        console: the serial console's device, `ttyS0`.
    """

    disk_bus: str = "virtio"
    card: str = "virtio"
    firmware: str = "bios"
    console: str = "ttyS0"
