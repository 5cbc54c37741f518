"""The sources' servers, as their agents told last: what of them would not come back, or not as it was.

Of a source whose agent never told, nothing is said. What an agent tells is information, so all of this warns only.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from drengine.failover.drivers.driver import KnowsMachine, KnowsNeeds
from drengine.failover.needs import Memory
from drengine.failover.preflight.check import Check, Look, Scene, all_of, apart
from drengine.failover.readiness import Checked, Severity
from drengine.model.errors import DrengineError
from drengine.model.inventory import Inventory
from drengine.store.errors import UNKNOWN_SOURCE
from drengine.terminal import human_bytes

MEMORY_SLACK_BYTES = 256 << 20
"""A kernel reports less memory than its machine has."""
_OF_THE_SYSTEM = ("/", "/boot", "/boot/efi", "/efi", "/usr")
"""What a server that only takes over data has of its own."""

ALL_REPLICATED = Check(
    "all-replicated",
    "what each source has mounted by its fstab lies on disks that are replicated, as far as its agent told; of the "
    "system itself, where a machine boots from it",
    "Protect that disk as well (another volume in the agent's file), or move the data; `drengine inventory SOURCE` "
    "shows what lies where.",
    Severity.WARNS,
)
ROOT_IN_CLEAR = Check(
    "root-in-clear",
    "the root file system of a source from whose disks a machine boots is not encrypted",
    "At its boot the machine waits on its console for the passphrase, unless the guest unlocks itself.",
    Severity.WARNS,
)
SOURCE_SIZE = Check(
    "source-size",
    "a machine that boots from a source's disks has as much memory as the source",
    "Give it more, or leave it out of the runbook: then it is as large as the source.",
    Severity.WARNS,
)


async def look_at_servers(scene: Scene) -> list[Checked]:
    """What would be missed of each source."""
    if scene.case.mode.is_way_home:
        return []  # it goes back to where all of it is

    def look(source: str) -> list[Checked]:
        try:
            inventory = scene.site.store.inventory(source)
        except DrengineError as error:
            if error.kind is UNKNOWN_SOURCE:
                return []  # that is a check of its own
            raise
        return list(_found(scene, source, inventory)) if inventory else []

    return await all_of(apart(partial(look, source)) for source in scene.sources)


def _found(scene: Scene, source: str, inventory: Inventory) -> Iterator[Checked]:
    launch = scene.case.runbook.sources[source].launch
    driver, settings = scene.site.drivers.get(launch.driver), launch.settings_in(scene.case.mode)
    boots = isinstance(driver, KnowsMachine)
    lost = list(_lost(inventory, with_system=boots))
    yield ALL_REPLICATED.found(source, seen="all of it is replicated", fault="; ".join(lost))
    if not boots:
        return
    fault = f"{inventory.root} is encrypted, or lies on what is" if inventory.encrypted_root else ""
    yield ROOT_IN_CLEAR.found(source, seen="it is in clear", fault=fault)
    if isinstance(driver, KnowsNeeds) and inventory.memory_bytes:
        try:
            needs = tuple(driver.needs(settings, inventory))
        except DrengineError:
            return  # its settings are a check of their own
        size = sum(need.size_bytes for need in needs if isinstance(need, Memory))
        seen = f"{human_bytes(size)}, the source has {human_bytes(inventory.memory_bytes)}"
        is_small = size and size + MEMORY_SLACK_BYTES < inventory.memory_bytes
        yield SOURCE_SIZE.found(source, seen=seen, fault=seen if is_small else "")


def _lost(inventory: Inventory, *, with_system: bool) -> Iterator[str]:
    """What is mounted by fstab, or as root, and lies on disks that are not replicated."""
    wanted = {"/", *(line.at for line in inventory.fstab if "noauto" not in line.options.split(","))}
    for each in inventory.file_systems:
        if each.mounted_at in wanted and each.unreplicated and (with_system or each.mounted_at not in _OF_THE_SYSTEM):
            is_one = len(each.unreplicated) == 1
            disks = ", ".join(each.unreplicated)
            yield f"{each.mounted_at} lies on {disks}, which {'is' if is_one else 'are'} not replicated"


LOOKS = (Look((ALL_REPLICATED, ROOT_IN_CLEAR, SOURCE_SIZE), look_at_servers),)
