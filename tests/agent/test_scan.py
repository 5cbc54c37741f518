"""Scanning: what the replica holds afterwards is the source, byte for byte, and no more was sent than had to be."""

from __future__ import annotations

import os
from pathlib import Path

from drengine.model.points import PointKind
from tests.agent.replica import Replica
from tests.agent.source import Source

MIB = 1 << 20


async def test_a_new_source_is_copied_and_becomes_a_point(tmp_path: Path) -> None:
    source = Source(tmp_path, {1: 3 * MIB + 512})
    source.write(0, os.urandom(MIB))
    source.write(2 * MIB + 100, b"x" * 5000)
    replica = Replica()
    with source.opened():
        await source.replicate(replica)
    assert replica.image() == source.contents()
    assert [point.cut.kind for point in replica.points] == [PointKind.QUIET]
    assert replica.points[0].images[1] == source.contents()
    assert source.progress.rescans == {}


async def test_a_scan_with_a_warm_index_sends_only_changed_grains_and_asks_nothing(tmp_path: Path) -> None:
    source = Source(tmp_path, {1: 4 * MIB})
    source.write(0, os.urandom(4 * MIB))
    replica = Replica()
    with source.opened():
        await source.replicate(replica)
    sent = replica.received_plain_bytes
    source.write(MIB + 4096 * 3 + 7, b"changed")
    with source.opened():
        await source.replicate(replica)
    assert replica.image() == source.contents()
    assert replica.received_plain_bytes - sent == 4096
    assert replica.queries == 0
