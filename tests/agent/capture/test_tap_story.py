"""Stories of one tap: what happens to writes, marks and cuts when something goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from tap_rig import Replica, Site, trim, write, zero


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_the_first_question_is_answered_with_a_scan_and_then_every_write_comes_in_order(site: Site) -> None:
    replica = Replica(site)
    changes = replica.pull()
    assert changes.rescan_reason == "epoch-changed"
    assert not changes.cut_ok
    replica.catch_up()
    site.apply(1, write(100, b"one"), write(103, b"two"), zero(200, 50))
    site.apply(2, trim(0, 4096))
    changes = replica.pull()
    assert [(w.volume, w.offset, w.length, w.discard) for w in changes.writes] == [
        (1, 100, 3, False),
        (1, 103, 3, False),
        (1, 200, 50, False),
        (2, 0, 4096, True),
    ]
    assert changes.cut_ok
    assert replica.image() == site.disks()


def test_a_clean_stop_goes_on_without_a_rescan(site: Site) -> None:
    replica = Replica(site)
    replica.catch_up()
    site.apply(1, write(5, b"before"))
    site.close()
    site.open()
    site.apply(1, write(7, b"after"))
    replica.catch_up()
    assert replica.scans == ["epoch-changed"]


@pytest.mark.fault(22)
def test_a_kill_between_journal_and_volume_is_mended(site: Site) -> None:
    replica = Replica(site)
    replica.catch_up()
    site.tap._write = lambda volume, requests: set()
    site.tap._journal.applied = lambda position: None
    site.apply(1, write(5, b"never reached the volume"))
    site.crash()
    site.open()
    assert site.disks()[1][5:29] == b"never reached the volume"
    replica.catch_up()
    assert replica.scans == ["epoch-changed"]


def test_a_full_journal_degrades_and_resyncs_only_what_is_dirty(site: Site) -> None:
    replica = Replica(site)
    replica.catch_up()
    for index in range(12):
        site.apply(2, write(index % 3 * 4096, bytes([index]) * 4096))
    assert site.tap.reason == "journal-full"
    assert site.lost()
    changes = replica.pull()
    assert sum(r.length for r in changes.ranges) == 3 * 4096
    assert not changes.cut_ok
    replica.catch_up()
    assert site.tap.reason == "none"
    assert not site.lost()
    assert replica.scans == ["epoch-changed"]
