"""Stories of one tap: what happens to writes, marks and cuts when something goes wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from drengine.model.errors import DrengineError
from drengine.model.points import Mark, VolumeGeometry
from drengine_agent.capture.backing import Volume
from tests.agent.capture.tap.rig import Replica, Site, trim, write, zero


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


def caught_up(site: Site) -> Replica:
    replica = Replica(site)
    replica.catch_up()
    return replica


def fill(site: Site) -> None:
    for index in range(12):
        site.apply(2, write(index % 3 * 4096, bytes([index]) * 4096))
    assert site.tap.reason == "journal-full"


def test_a_clean_stop_without_order_goes_on_with_what_is_dirty(site: Site) -> None:
    replica = caught_up(site)
    fill(site)
    site.apply(7, write(3, b"also"))
    site.close()
    site.open()
    assert site.tap.reason == "journal-full"
    changes = replica.pull()
    assert sum(part.length for part in changes.ranges) == 3 * 4096 + 1000
    replica.catch_up()
    assert replica.scans == ["epoch-changed"]


@pytest.mark.fault(22)
def test_a_kill_without_order_is_a_rescan(site: Site) -> None:
    replica = caught_up(site)
    fill(site)
    site.crash()
    site.open()
    assert replica.pull().rescan_reason == "unclean-stop"
    replica.catch_up()


@pytest.mark.fault(21)
@pytest.mark.fault(22)
def test_a_kill_and_a_reboot_is_a_rescan_because_the_page_cache_is_gone(site: Site, monkeypatch) -> None:
    replica = caught_up(site)
    site.apply(1, write(0, b"x"))
    site.crash()
    monkeypatch.setattr("drengine_agent.capture.tap.directory.boot_id", lambda: "another boot")
    site.open()
    assert replica.pull().rescan_reason == "rebooted"
    replica.catch_up()


def test_a_clean_stop_and_a_reboot_of_a_host_with_disk_images_is_no_rescan(site: Site, monkeypatch) -> None:
    replica = caught_up(site)
    site.apply(1, write(0, b"x"))
    site.close()
    monkeypatch.setattr("drengine_agent.capture.tap.directory.boot_id", lambda: "another boot")
    site.open()
    replica.catch_up()
    assert replica.scans == ["epoch-changed"]


def test_a_volume_written_behind_the_stopped_agents_back_is_a_rescan(site: Site) -> None:
    replica = caught_up(site)
    site.close()
    with (site.path / "disk1").open("r+b") as file:
        file.write(b"unseen")
    site.open()
    assert replica.pull().rescan_reason == "changed-outside"
    replica.catch_up()


@pytest.mark.fault(25)
def test_a_resized_volume_is_noticed_while_served_and_rescanned_when_reopened(site: Site) -> None:
    caught_up(site)
    os.truncate(site.path / "disk1", 50_001)
    with pytest.raises(DrengineError) as caught:
        site.tap.check()
    assert caught.value.kind.id == "volume-resized"
    site.close()
    site.sizes[1] = 50_001
    site.open()
    replica = Replica(site)
    assert replica.pull().rescan_reason == "geometry-changed"
    replica.catch_up()


@pytest.mark.fault(27)
def test_another_file_under_a_volumes_name_is_refused(site: Site) -> None:
    identity = site.volumes[0].identity
    path = site.path / "disk1"
    path.rename(site.path / "old")
    with pytest.raises(DrengineError) as caught:
        site.tap.check()
    assert caught.value.kind.id == "volume-missing"
    path.write_bytes(bytes(40_000))
    with pytest.raises(DrengineError) as caught:
        site.tap.check()
    assert caught.value.kind.id == "volume-replaced"
    site.close()
    with pytest.raises(DrengineError) as caught:
        Volume.open(1, "disk1", path, writable=True, identity=identity)
    assert caught.value.kind.id == "volume-replaced"
    site.open()
    with pytest.raises(DrengineError):
        site.tap._check_declared([VolumeGeometry(1, "disk1", identity, 40_000)])


def test_a_target_that_went_back_in_time_is_rescanned(site: Site) -> None:
    replica = caught_up(site)
    old = replica.durable
    site.apply(1, write(0, b"one"))
    replica.catch_up()
    assert site.tap.changes(old, bytes_max=1000).rescan_reason == "epoch-changed"


def test_a_target_that_went_back_before_a_resync_is_rescanned(site: Site) -> None:
    replica = caught_up(site)
    old = replica.durable
    site.apply(1, write(0, b"one"))
    replica.catch_up()
    fill(site)
    assert site.tap.changes(replica.durable, bytes_max=1000).ranges
    assert site.tap.changes(replica.durable, bytes_max=1000).ranges, "asked again, the same resync"
    assert site.tap.changes(old, bytes_max=1000).rescan_reason == "epoch-changed"


def test_a_target_that_knows_a_future_is_rescanned(site: Site) -> None:
    replica = caught_up(site)
    future = Mark(replica.durable.epoch, replica.durable.position + 1)
    assert site.tap.changes(future, bytes_max=1000).rescan_reason == "epoch-changed"


@pytest.mark.fault(23)
def test_ranges_read_again_after_a_broken_session_put_the_first_cut_off_again(site: Site) -> None:
    replica = caught_up(site)
    fill(site)
    replica.pull()
    replica.pull()
    replica.lose_session()
    site.apply(1, write(0, b"early"))
    site.apply(1, write(0, b"later"))
    while not (changes := replica.pull(1)).writes:
        pass
    assert bytes(changes.writes[0].data) == b"early"
    assert not changes.cut_ok, "the ranges were read when `later` was there already"
    assert replica.pull(1).cut_ok


def test_a_rotten_journal_after_a_finished_scan_begins_another_scan(site: Site) -> None:
    replica = Replica(site)
    changes = replica.pull()
    assert changes.rescan_reason
    site.apply(1, write(0, b"during the scan"))
    with (site.path / "journal" / "ring").open("r+b") as ring:
        ring.write(bytes(site.options.journal_bytes))
    again = replica.pull()
    assert again.rescan_reason == "journal-damaged"
    assert again.mark.epoch != changes.mark.epoch
    replica.catch_up()


def test_writes_during_a_scan_that_overflow_the_journal_do_not_start_it_again(site: Site) -> None:
    replica = Replica(site)
    replica.pull()
    for index in range(12):
        site.apply(2, write(index % 3 * 4096, bytes([index]) * 4096))
    replica.catch_up()
    assert replica.scans == ["epoch-changed"]


@pytest.mark.fault(26)
def test_a_volume_whose_sync_failed_is_stopped_and_rescanned_later(site: Site, monkeypatch) -> None:
    replica = caught_up(site)
    volume = site.tap.volumes[1]
    monkeypatch.setattr(volume, "sync", lambda: (_ for _ in ()).throw(OSError(5, "injected")))
    assert not site.tap.flush(volume)
    monkeypatch.undo()
    assert not site.tap.flush(volume), "never tried again: a second fsync would lie"
    assert site.apply(1, write(0, b"x")) == {0}
    assert site.apply(2, write(0, b"x")) == set()
    site.close()
    site.open()
    assert replica.pull().rescan_reason == "unclean-stop"


@pytest.mark.fault(63)
def test_order_spans_volumes(site: Site) -> None:
    replica = caught_up(site)
    for index in range(20):
        site.apply((1, 7)[index % 2], write(0, bytes([index])))
    while (changes := replica.pull(1)).writes:
        first, second = replica.disks[1][0], replica.disks[7][0]
        assert abs(first - second) == 1 or changes.writes[0].data == b"\0"
        assert changes.cut_ok
        if not changes.more:
            break


def test_a_write_larger_than_the_journal_is_neither_stalled_nor_lost(tmp_path: Path) -> None:
    site = Site(tmp_path, journal_bytes=4096)
    replica = caught_up(site)
    assert site.apply(1, write(1, b"x" * 30_000)) == set()
    assert site.tap.reason == "journal-full"
    replica.catch_up()


def test_the_age_of_the_oldest_change_is_known_and_forgotten(site: Site) -> None:
    replica = caught_up(site)
    assert site.tap.behind_since_ns() == 0
    site.apply(1, write(0, b"x"))
    first = site.clock.now_ns()
    site.apply(1, write(0, b"y"))
    assert site.tap.behind_since_ns() == first
    assert site.tap.backlog_bytes() > 0
    replica.catch_up()
    assert site.tap.behind_since_ns() == 0
