"""What a conversion is asked for, and what it tells."""

from __future__ import annotations

import msgspec

from drengine.model.hardware import Card, Machine
from drengine.model.inventory import Inventory
from drengine.redaction import without_secrets

TEXT_CHARACTERS_MAX = 4096


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What the disks are to be made fit for.

    Attributes:
        machine: what the guest will find.
        inventory: the source, as its agent found it; None: it never told.
        cards: the network cards that it will have; empty: its network configuration is left as it is.
        first_boot: a shell script that the guest runs once, at its next start; empty: none.
        dry: only say what would be changed.
    """

    machine: Machine
    inventory: Inventory | None = None
    cards: tuple[Card, ...] = ()
    first_boot: str = ""
    dry: bool = False


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is changed in the guest.

    Attributes:
        what: `fstab`, `initramfs`, `kernel-command-line`, `boot-loader`, `network`, `console`, `first-boot`,
            `labels`.
        path: the guest's file, or what a program of the guest was run for.
        before, after: what stood there and what stands there now; bounded.
    """

    what: str
    path: str
    before: str = ""
    after: str = ""


class Converted(msgspec.Struct, frozen=True, kw_only=True):
    """What a conversion found and changed.

    Attributes:
        system: the guest's, by its own name (PRETTY_NAME).
        root: the volume and partition of its root file system: `root 2`, or a logical volume's name.
        kernels: those that are installed.
        changes: in the order in which they were made; none: there was nothing to change.
        notes: what a person should know, such as file systems whose disks are not there.
        set_aside: where the guest's own files are kept that were replaced.
    """

    system: str = ""
    root: str = ""
    kernels: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()
    set_aside: str = ""


def bounded(text: str) -> str:
    """A text as it is told: printable, without what looks like a secret, and not longer than is worth reading."""
    shown = without_secrets(text)
    clean = "".join(each if each.isprintable() or each in "\n\t" else "\N{REPLACEMENT CHARACTER}" for each in shown)
    return clean if len(clean) <= TEXT_CHARACTERS_MAX else clean[:TEXT_CHARACTERS_MAX] + " ..."
