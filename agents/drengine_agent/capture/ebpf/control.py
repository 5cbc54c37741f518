"""What the control value says of itself and of its volumes: written at the beginning, compared at an adoption."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import platform
import time
from typing import Any

from drengine_agent.capture.ebpf import layout as at
from drengine_agent.capture.ebpf import program, syscalls
from drengine_agent.capture.ebpf.bits import load_word, store_bytes, store_word
from drengine_agent.capture.ebpf.device import BlockDevice
from drengine_agent.capture.ebpf.layout import Layout, WatchedVolume


def write_control(view: mmap.mmap, layout: Layout) -> None:
    """All but the magic, which comes when everything is pinned."""
    store_word(view, at.AT_VERSION, at.VERSION)
    store_word(view, at.AT_HALF_WORDS, layout.half_words)
    store_word(view, at.AT_LEDGER, 2 * layout.half_words)
    store_bytes(view, at.AT_EPOCH, os.urandom(16))
    store_bytes(view, at.AT_BOOT, boot_hash())
    store_bytes(view, at.AT_FINGERPRINT, program.fingerprint())
    store_bytes(view, at.AT_GEOMETRY, layout.geometry_hash)
    store_word(view, at.AT_STARTED_NS, time.time_ns())
    store_word(view, at.AT_VOLUMES_LENGTH, len(layout.volumes_json))
    store_bytes(view, at.AT_VOLUMES, layout.volumes_json)
    for index, region in enumerate(layout.regions):
        here = at.AT_REGIONS + index * at.REGION_BYTES
        store_word(view, here + at.REGION_START, region.start_sector)
        store_word(view, here + at.REGION_END, region.end_sector)
        store_word(view, here + at.REGION_FINE, region.fine_bit)
        store_word(view, here + at.REGION_COARSE, region.coarse_bit)
        store_word(view, here + at.REGION_LEDGER, region.ledger_bit)


def boot_hash() -> bytes:
    """16 bytes that name this boot of this kernel."""
    return hashlib.sha256(f"{syscalls.boot_id()} {platform.release()}".encode()).digest()[:16]


def described(view: mmap.mmap) -> list[dict[str, Any]]:
    """The volumes, as they were when tracking began."""
    length = min(load_word(view, at.AT_VOLUMES_LENGTH), at.CONTROL_BYTES - at.AT_VOLUMES)
    return list(json.loads(view[at.AT_VOLUMES : at.AT_VOLUMES + length]))


def described_now(layout: Layout) -> list[dict[str, Any]]:
    """The volumes of a layout, in the same form."""
    return list(json.loads(layout.volumes_json))


def watched_volume(each: dict[str, Any]) -> WatchedVolume:
    """A volume out of its description, enough to plan the same layout."""
    device = BlockDevice(
        each["device"], each["number"], each["disk"], each["start_sector"], each["sectors"], each["bio"],
        each["diskseq"], each["identity"],
    )  # fmt: skip
    return WatchedVolume(each["volume"], device, each["size_bytes"])


def geometry_doubt(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> str:
    """Why the volumes are not what they were: `tracking-lost` if a device was away, else `geometry-changed`."""
    known = {each.get("volume"): each for each in before}
    same = ("number", "disk", "diskseq", "identity")
    for each in now:
        old = known.get(each["volume"])
        if old is not None and any(old.get(key) != each[key] for key in same):
            return "tracking-lost"
    return "geometry-changed"


def sum_of(view: mmap.mmap, regions: int, place: int) -> int:
    """One of the regions' numbers, added up."""
    return sum(load_word(view, at.AT_REGIONS + index * at.REGION_BYTES + place) for index in range(regions))
