"""The kernel state of one consistency group, byte by byte: the control value and the two bitmaps (docs/ebpf.md).

One array map of 64-bit words holds two halves of the same shape; programs set bits in the *active* one, user
space owns the other. Inside a half, all in whole pages of 512 words:

- *summary*: a bit for each page of the half that has a bit set, so that an empty bitmap is known at a glance;
- *fine*: for each region (a disk's tracked stretch) a bit for each block of 4 KiB;
- *coarse*: for each region a bit for each 4,096 blocks (16 MiB), set by long ranges in place of all the fine ones.

Behind the halves lie two *ledgers* of what was issued to disks that complete requests, a bit for each 64 KiB: the
current one, where programs mark, and the one before. They are read only when a completion was left out (see `audit`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from drengine_agent.capture.ebpf.device import BlockDevice

VERSION: Final = 1
MAGIC: Final = int.from_bytes(b"DRTRACK\0", "little")
BLOCK_BYTES: Final = 4096
BLOCK_SECTORS_SHIFT: Final = 3
COARSE_BLOCKS_SHIFT: Final = 12
COARSE_BLOCKS: Final = 1 << COARSE_BLOCKS_SHIFT
LEDGER_BLOCKS_SHIFT: Final = 4
LEDGER_BLOCKS: Final = 1 << LEDGER_BLOCKS_SHIFT
PAGE_WORDS: Final = 512
PAGE_BYTES: Final = 4096
PAGE_BITS: Final = PAGE_BYTES * 8
DISKS_MAX: Final = 64

CONTROL_BYTES: Final = 1 << 16
AT_MAGIC, AT_VERSION, AT_ANSWER, AT_PHASE, AT_FLIP_TO, AT_HALF_WORDS = 0x00, 0x08, 0x10, 0x18, 0x20, 0x28
AT_DOUBT, AT_EPOCH, AT_BOOT, AT_FINGERPRINT, AT_GEOMETRY, AT_TAGS = 0x30, 0x40, 0x50, 0x60, 0x70, 0x80
AT_STARTED_NS, AT_VOLUMES_LENGTH, AT_CLEARED, AT_PASSED_SEEN, AT_UNMATCHED_SEEN = 0x90, 0x98, 0xA0, 0xA8, 0xB0
AT_ACTIVE: Final = 0x0C0
AT_COUNTER: Final = 0x100
AT_LEDGER: Final = 0x0C8
AT_FAULTS, AT_UNRECORDED, AT_UNMATCHED = 0x140, 0x148, 0x150
AT_MISSED, AT_LEDGER_STAGE, AT_HEALED = 0x160, 0x180, 0x188
AT_REGIONS: Final = 0x200
REGION_BYTES: Final = 128
REGION_START, REGION_END, REGION_FINE, REGION_COARSE, REGION_PASSED_OUT, REGION_PASSED_IN = 0, 8, 16, 24, 32, 40
REGION_LEDGER, REGION_SECTORS, REGION_BALANCE = 48, 64, 96
AT_VOLUMES: Final = AT_REGIONS + REGION_BYTES * DISKS_MAX

PHASE_NONE, PHASE_FLIPPING, PHASE_PENDING = 0, 1, 2


@dataclass(frozen=True, slots=True)
class WatchedVolume:
    """A volume to watch.

    Attributes:
        volume: its number inside the source.
        device: where its bytes lie.
        size_bytes: its size, as declared to the target.
    """

    volume: int
    device: BlockDevice
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Region:
    """A disk's stretch that holds all its watched volumes, and where its bits lie in a half.

    Attributes:
        disk: device number of the whole disk, major << 20 | minor.
        bio: its writes complete as bios, not as requests.
        start_sector, end_sector: the stretch, in sectors of 512 bytes of the disk.
        fine_bit, coarse_bit: number of its first fine and coarse bit in a half.
        ledger_bit: number of its first bit in a ledger.
    """

    disk: int
    bio: bool
    start_sector: int
    end_sector: int
    fine_bit: int
    coarse_bit: int
    ledger_bit: int = 0

    @property
    def blocks(self) -> int:
        """Blocks of 4 KiB, the last one perhaps short."""
        return -(-(self.end_sector - self.start_sector) // (1 << BLOCK_SECTORS_SHIFT))


@dataclass(frozen=True, slots=True)
class Placement:
    """A volume's place: bytes from its region's beginning."""

    volume: int
    region: int
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything lies for a set of volumes. The same volumes always give the same layout."""

    regions: tuple[Region, ...]
    placements: tuple[Placement, ...]
    summary_words: int
    half_words: int
    ledger_words: int
    volumes_json: bytes

    @property
    def words(self) -> int:
        """Of the whole bitmap map: two halves, two ledgers."""
        return 2 * (self.half_words + self.ledger_words)

    @property
    def geometry_hash(self) -> bytes:
        """16 bytes that differ when a volume's number, device, place or size does."""
        return hashlib.sha256(self.volumes_json).digest()[:16]


def _pages(bits: int) -> int:
    return -(-bits // PAGE_BITS)


def plan(volumes: Sequence[WatchedVolume]) -> Layout:
    """Lay out the kernel state of these volumes.

    Raises:
        ValueError: no volume, or more disks than a group can have.
    """
    ordered = sorted(volumes, key=lambda each: each.volume)
    disks: dict[int, list[WatchedVolume]] = {}
    for each in ordered:
        disks.setdefault(each.device.disk_number, []).append(each)
    if not ordered or len(disks) > DISKS_MAX:
        raise ValueError(f"a group has 1 to {DISKS_MAX} disks")
    spans = [
        (min(each.device.start_sector for each in group), max(each.device.end_sector for each in group))
        for group in disks.values()
    ]
    blocks = [-(-(end - start) // (1 << BLOCK_SECTORS_SHIFT)) for start, end in spans]
    fine_pages = [_pages(count) for count in blocks]
    coarse_pages = [_pages(-(-count // COARSE_BLOCKS)) for count in blocks]
    payload_pages = sum(fine_pages) + sum(coarse_pages)
    summary_pages = 1
    while summary_pages * PAGE_BITS < summary_pages + payload_pages:
        summary_pages += 1
    fine, coarse = summary_pages * PAGE_BITS, (summary_pages + sum(fine_pages)) * PAGE_BITS
    ledger_pages = [_pages(-(-count // LEDGER_BLOCKS)) for count in blocks]
    ledger = 0
    regions = []
    for index, group in enumerate(disks.values()):
        start, end = spans[index]
        device = group[0].device
        regions.append(Region(device.disk_number, device.bio, start, end, fine, coarse, ledger))
        ledger += ledger_pages[index] * PAGE_BITS
        fine += fine_pages[index] * PAGE_BITS
        coarse += coarse_pages[index] * PAGE_BITS
    numbers = {disk: index for index, disk in enumerate(disks)}
    placements = tuple(
        Placement(
            each.volume,
            numbers[each.device.disk_number],
            (each.device.start_sector - spans[numbers[each.device.disk_number]][0]) * 512,
            each.size_bytes,
        )
        for each in ordered
    )
    total_pages = summary_pages + payload_pages
    return Layout(
        tuple(regions),
        placements,
        -(-total_pages // 64),
        total_pages * PAGE_WORDS,
        ledger // 64,
        _described(ordered),
    )


def _described(volumes: Sequence[WatchedVolume]) -> bytes:
    """The volumes as the kernel keeps them for whoever takes the tracking up again.

    Raises:
        ValueError: they don't fit.
    """
    facts = [
        {
            "volume": each.volume,
            "size_bytes": each.size_bytes,
            "device": each.device.name,
            "number": each.device.number,
            "disk": each.device.disk_number,
            "start_sector": each.device.start_sector,
            "sectors": each.device.sectors,
            "diskseq": each.device.diskseq,
            "identity": each.device.identity,
            "bio": each.device.bio,
        }
        for each in volumes
    ]
    text = json.dumps(facts, separators=(",", ":"), sort_keys=True).encode()
    if len(text) > CONTROL_BYTES - AT_VOLUMES:
        raise ValueError("too many volumes in one group")
    return text
