"""The tap as its clients see it: over NBD, killed under load, with real clients, and with protocol `sync`."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from drengine.model.points import Mark
from drengine.nbd.client import NbdClient
from drengine_agent.capture.tap.export import INLINE_READ_BYTES
from drengine_agent.capture.tap.server import TapServer
from tests.agent.capture.tap import child as serving
from tests.agent.capture.tap.rig import Replica, Site, apply_writes

PAGE = 4096
PAGES = 64


@contextlib.contextmanager
def served(site: Site, **options) -> Iterator[TapServer]:
    server = TapServer(site.tap, site.path / "socket", **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def start_child(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, serving.__file__, str(path), str(path / "socket"), "2"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "serving\n"
    return child


@pytest.mark.fault(22)
@pytest.mark.fault(63)
def test_killed_under_load_the_journal_is_a_prefix_of_what_was_sent_and_has_all_that_was_answered(
    tmp_path,
) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    for number in (1, 2):
        (tmp_path / f"disk{number}").write_bytes(bytes(PAGES * PAGE))
    sent = answered = 0
    for _ in range(5):
        child = start_child(tmp_path)
        first = sent
        limit = rng.randrange(1, 600)
        enough = threading.Event()
        killer = threading.Thread(target=lambda child=child, enough=enough: (enough.wait(30), child.kill()))
        killer.start()
        with contextlib.suppress(OSError):
            clients = [NbdClient(str(tmp_path / "socket"), f"disk{number}") for number in (1, 2)]
            while True:
                sent += 1
                clients[sent % 2].write(rng.randrange(PAGES) * PAGE, sent.to_bytes(8, "big") * (PAGE // 8))
                answered = sent
                if sent - first >= limit:
                    enough.set()
        killer.join()
        child.wait()
        tap = serving.open_tap(tmp_path, 2)
        epoch, position = (tmp_path / "mark").read_text().split()
        mark, writes, more = Mark(bytes.fromhex(epoch), int(position)), [], True
        while more:
            changes = tap.changes(mark, bytes_max=1 << 20)
            assert changes.rescan_reason is None
            assert changes.cut_ok
            writes += changes.writes
            mark, more = changes.mark, changes.more
        stamps = [int.from_bytes(write.data[:8], "big") for write in writes]
        assert stamps == list(range(1, len(stamps) + 1))
        assert answered <= len(stamps) <= sent
        disks = {number: bytearray(PAGES * PAGE) for number in (1, 2)}
        apply_writes(disks, writes)
        for number in (1, 2):
            assert (tmp_path / f"disk{number}").read_bytes() == disks[number]
        sent = answered = len(stamps)
        tap.close()
        for volume in tap.volumes.values():
            volume.close()


@pytest.mark.fault(30)
def test_a_flush_is_answered_after_volume_and_journal_are_durable_and_fails_when_they_are_not(
    tmp_path,
) -> None:
    site = Site(tmp_path)
    calls: list[str] = []
    volume = site.tap.volumes[1]
    really, journal_sync = volume.sync, site.tap._journal.sync
    volume.sync = lambda: (calls.append("volume"), really())[1]
    site.tap._journal.sync = lambda: (calls.append("journal"), journal_sync())[1]
    with served(site), NbdClient(str(site.path / "socket"), "disk1") as client:
        client.write(0, b"a" * 100)
        assert calls == []
        client.flush()
        assert sorted(calls) == ["journal", "volume"]
        client.write(0, b"b" * 100, fua=True)
        assert sorted(calls) == ["journal", "journal", "volume", "volume"]

        def broken() -> None:
            raise OSError(5, "injected")

        volume.sync = broken
        for _ in range(2):
            with pytest.raises(Exception, match="error 5"):
                client.flush()
        with pytest.raises(Exception, match="error 5"):
            client.write(0, b"c")


def test_a_flush_syncs_volume_and_journal_at_once_and_reads_are_served_meanwhile(tmp_path) -> None:
    site = Site(tmp_path)
    both, let_go = threading.Barrier(3), threading.Event()

    def blocked() -> None:
        both.wait(10)
        assert let_go.wait(10)

    site.tap.volumes[1].sync = blocked
    site.tap._journal.sync = blocked
    socket = str(site.path / "socket")
    with served(site), NbdClient(socket, "disk1") as flushing, NbdClient(socket, "disk1") as other:
        flushing.write(0, b"a" * 100)
        flushed = threading.Event()
        flusher = threading.Thread(target=lambda: (flushing.flush(), flushed.set()))
        flusher.start()
        both.wait(10)
        assert other.read(0, 100) == b"a" * 100
        other.write(0, b"b" * 100)
        assert other.read(0, 100) == b"b" * 100
        assert not flushed.is_set()
        let_go.set()
        flusher.join(10)
        assert flushed.is_set()


def test_a_read_that_waits_for_the_disk_keeps_no_other_client_waiting(tmp_path) -> None:
    site = Site(tmp_path)
    volume = site.tap.volumes[1]
    expected = site.disks()[1]
    waiting, let_go = threading.Event(), threading.Event()
    cached, really = volume.read_cached, volume.read

    def slow(offset: int, length: int) -> bytes:
        waiting.set()
        assert let_go.wait(10)
        if offset == 200:
            raise OSError(5, "injected")
        return really(offset, length)

    volume.read = slow
    volume.read_cached = lambda offset, length: None if offset < 4096 else cached(offset, length)
    socket = str(site.path / "socket")
    with served(site), NbdClient(socket, "disk1") as cold, NbdClient(socket, "disk1") as warm:
        found: list[bytes] = []
        reader = threading.Thread(target=lambda: found.append(cold.read(100, 50)))
        reader.start()
        assert waiting.wait(10)
        assert warm.read(8192, 50) == expected[8192:8242]
        warm.write(8192, b"new" * 10)
        assert not found
        let_go.set()
        reader.join(10)
        assert found == [expected[100:150]]
        with pytest.raises(Exception, match="error 5"):
            cold.read(200, 10)


def test_long_reads_are_answered_whole_whoever_reads_them(tmp_path) -> None:
    site = Site(tmp_path)
    site.close()
    site.sizes = {1: 2 << 20}
    (tmp_path / "disk1").write_bytes(random.Random(1).randbytes(2 << 20))
    shutil.rmtree(tmp_path / "journal")
    site.open()
    image = site.disks()[1]
    with served(site), NbdClient(str(site.path / "socket"), "disk1") as client:
        for length in (1, INLINE_READ_BYTES, INLINE_READ_BYTES + 1, 1 << 20):
            assert client.read(777, length) == image[777 : 777 + length]


def test_sync_answers_a_write_when_the_target_has_it(tmp_path) -> None:
    site = Site(tmp_path)
    replica = Replica(site)
    replica.catch_up()
    with served(site, sync=True) as server, NbdClient(str(site.path / "socket"), "disk1") as client:
        assert server.protocol_state == "sync"
        arrived = threading.Event()
        site.tap._journal.applied = lambda position, really=site.tap._journal.applied: (
            really(position),
            arrived.set(),
        )
        answered = threading.Event()
        writer = threading.Thread(target=lambda: (client.write(0, b"x"), answered.set()))
        writer.start()
        assert arrived.wait(10)
        replica.pull()
        assert not answered.is_set()
        replica.commit()
        writer.join(10)
        assert answered.is_set()


def test_sync_lets_writes_pass_when_the_target_is_gone_too_long_or_order_is_lost(tmp_path) -> None:
    site = Site(tmp_path)
    replica = Replica(site)
    with (
        served(site, sync=True, sync_fallback_seconds=0.05) as server,
        NbdClient(str(site.path / "socket"), "disk1") as client,
    ):
        assert server.protocol_state == "sync-suspended"
        client.write(0, b"during the first scan nobody waits")
        replica.catch_up()
        assert server.protocol_state == "sync"
        client.write(0, b"waits, then passes")
        assert server.protocol_state == "sync-suspended"
        replica.catch_up()
        client.flush()  # the gate has looked at the acknowledgement when this is answered
        assert server.protocol_state == "sync"


def need(tool: str) -> str:
    found = shutil.which(tool)
    if not found:
        pytest.skip(f"{tool} is not installed (Debian: libnbd-bin, qemu-utils, fio)")
    return found


@pytest.mark.fault(24)
@pytest.mark.fault(28)
def test_qemu_io_and_nbdcopy_agree_with_the_replica(tmp_path) -> None:
    need("qemu-io"), need("nbdcopy")
    site = Site(tmp_path, journal_bytes=1 << 20)
    replica = Replica(site)
    replica.catch_up()
    with served(site):
        uri = f"nbd+unix:///disk1?socket={site.path / 'socket'}"
        script = [
            "write -P 7 512 5000",
            "write -z 1000 3000",
            "discard 8192 8192",
            "aio_write -P 9 20k 8k",
            "flush",
        ]
        command = [word for line in script for word in ("-c", line)]
        subprocess.run(["qemu-io", "-f", "raw", *command, uri], check=True, capture_output=True, timeout=60)
        replica.catch_up()
        image = bytes(random.Random(1).randbytes(30_000)) + bytes(10_000)
        (tmp_path / "image").write_bytes(image)
        subprocess.run(["nbdcopy", str(tmp_path / "image"), uri], check=True, timeout=60)
        replica.catch_up()
        assert replica.disks[1] == image
        subprocess.run(["nbdcopy", uri, str(tmp_path / "back")], check=True, timeout=60)
        assert (tmp_path / "back").read_bytes() == image


def test_fio_verifies_what_it_wrote_and_the_replica_has_it(tmp_path) -> None:
    fio = need("fio")
    if "nbd" not in subprocess.run([fio, "--enghelp"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("this fio has no nbd engine")
    site = Site(tmp_path, journal_bytes=8 << 20)
    site.close()
    site.sizes = {1: 4 << 20}
    (tmp_path / "disk1").write_bytes(bytes(4 << 20))
    shutil.rmtree(tmp_path / "journal")
    site.open()
    replica = Replica(site)
    with served(site):
        uri = f"nbd+unix:///disk1?socket={site.path / 'socket'}"
        engine = ["--ioengine=nbd", f"--uri={uri}", "--iodepth=16", "--size=4m"]
        job = [
            "--rw=randwrite",
            "--bsrange=512-16k",
            "--verify=crc32c",
            "--do_verify=1",
            "--verify_fatal=1",
            "--verify_state_save=0",
        ]
        command = [fio, "--name=tap", *engine, *job]
        subprocess.run(command, check=True, capture_output=True, timeout=90)
        replica.catch_up()
