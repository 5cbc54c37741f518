"""Local copies of what the object store has rot: they are dropped and read again, and nothing counts as damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.devices import until
from drengine.cli.main import app
from drengine.crypt.kek import KeyEncryptionKeys
from drengine.store.blobs.s3.options import ACK_LOCAL, ACK_OBJECT, S3Options
from drengine.store.store import Store
from drengine.terminal import main
from tests.s3.proxy import Proxy, fault_proxy
from tests.s3.server import S3Server, client
from tests.s3.stores import stored_in
from tests.store.harness import KEKS, TINY, Source, crash

MIB = 1 << 20
OPTIONS = S3Options(ack=ACK_OBJECT, delete_delay=0.0)

FEW = ("flipped at 0.2", "a page inverted", "cut in half")

Rot = Callable[[bytearray], bytes]


def flipped(share: float) -> Rot:
    """One bit, at this share of the file."""

    def rot(data: bytearray) -> bytes:
        data[min(int(share * len(data)), len(data) - 1)] ^= 0x10
        return bytes(data)

    return rot


def seeded(data: bytearray) -> bytes:
    """Every bit of a page in the middle."""
    at = len(data) // 2
    data[at : at + 4096] = bytes(byte ^ 0xFF for byte in data[at : at + 4096])
    return bytes(data)


ROTS: dict[str, Rot] = {
    **{f"flipped at {share}": flipped(share) for share in (0.0, 0.2, 0.5, 1.0)},
    "a page inverted": seeded,
    "zeros": lambda data: bytes(len(data)),
    "cut in half": lambda data: bytes(data[: len(data) // 2]),
    "empty": lambda data: b"",
    "longer, and another": lambda data: bytes(7) + bytes(data),
}


def copies(store: Path) -> list[Path]:
    return [path for path in sorted((store / "cache").rglob("*")) if path.is_file()]


def spoil(path: Path, rot: Rot) -> None:
    """In place: whoever has the file open sees it."""
    spoiled = rot(bytearray(path.read_bytes()))
    with path.open("r+b") as file:
        file.truncate(0)
        file.write(spoiled)


def filled(path: Path, proxy: Proxy, bucket: str, keks: KeyEncryptionKeys | None) -> Source:
    """A closed store, all of it uploaded."""
    where = stored_in(proxy.endpoint, bucket)
    with Store.create(path, stored_in=where, storage_options=OPTIONS, options=TINY, keks=keks) as store:
        source = Source(store, data=MIB, log=70_000)
        for _ in range(5):
            source.write_random(3)
            source.cut()
            source.commit()
        store.pin(source.point(list(source.points)[2]), "keep")
        source.writer.close()
        source.check()
    return source


def reopened(path: Path, keks: KeyEncryptionKeys | None) -> Store:
    return Store.open(path, storage_options=OPTIONS, options=TINY, keks=keks)


def assert_sound(store: Store, source: Source) -> None:
    source.store = store
    source.check()
    for point in store.points(source.name):
        assert store.verify(point).intact
        assert not point.damaged
    assert not store.context.catalogue.damage(source.name)


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[Proxy]:
    with fault_proxy(s3) as running:
        yield running


@pytest.mark.timeout(180)
@pytest.mark.fault(2)
@pytest.mark.parametrize("keks", [None, KEKS], ids=["clear", "encrypted"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "blocks"])
def test_a_rotten_copy_is_read_again_and_is_no_damage(
    tmp_path: Path, proxy: Proxy, bucket: str, keks: KeyEncryptionKeys | None, *, whole: bool
) -> None:
    """All copies at once, in each way that copies rot."""
    path = tmp_path / "store"
    source = filled(path, proxy, bucket, keks)
    rots = ROTS if whole and not keks else {what: ROTS[what] for what in FEW}
    for what, rot in rots.items():
        if not whole:
            shutil.rmtree(path / "cache")
        with reopened(path, keks) as store:
            assert_sound(store, source)
        kinds = {copy.relative_to(path / "cache").parts[0] for copy in copies(path)}
        assert kinds >= ({"segments", "keys"} if keks else {"segments"}), what
        for copy in copies(path):
            spoil(copy, rot)
        with reopened(path, keks) as store:
            assert_sound(store, source)
            assert not store.scrub().segments_repaired, what


@pytest.mark.fault(2)
def test_what_the_object_itself_has_wrong_is_damage(tmp_path: Path, s3: S3Server, proxy: Proxy, bucket: str) -> None:
    path = tmp_path / "store"
    source = filled(path, proxy, bucket, None)
    behind = client(s3.endpoint)
    with reopened(path, None) as store:
        segment = store.context.catalogue.segments(source.name, 1)[0]
        keys = [row.key for row in store.context.catalogue.all_parts() if row.name.endswith("00000001.0001.seg")]
    for key in keys:
        data = behind.get_object(Bucket=bucket, Key=f"store/{key}")["Body"].read()
        behind.put_object(Bucket=bucket, Key=f"store/{key}", Body=flipped(0.5)(bytearray(data)))
    shutil.rmtree(path / "cache")
    with reopened(path, None) as store:
        proxy.log.clear()
        assert store.scrub().records_damaged
        store.scrub()
        asked = sum(entry.request.key.endswith(tuple(keys)) for entry in proxy.log)
        assert 0 < asked <= 2 * len(keys) + 2, "it is fetched once more, and not for each record"
        assert [row.segment for row in store.context.catalogue.damage(source.name)][:1] == [segment.segment]


@pytest.mark.fault(2)
@pytest.mark.parametrize("rot", ["flipped at 0.2", "flipped at 0.0", "zeros", "cut in half"])
@pytest.mark.parametrize("ack", [ACK_OBJECT, ACK_LOCAL])
def test_a_spool_file_that_rots_under_its_writer_is_not_believed(
    tmp_path: Path, s3: S3Server, bucket: str, ack: str, rot: str
) -> None:
    """The writer goes on, is killed, resumes, seals, and what was uploaded is whole at every moment."""
    options = S3Options(ack=ack, delete_delay=0.0, upload_interval=0.01)
    path, where = tmp_path / "store", stored_in(s3.endpoint, bucket)
    with Store.create(path, stored_in=where, storage_options=options) as store:
        source = Source(store, data=MIB)
        for _ in range(4):
            source.write_random(2)
            source.cut()
            source.commit()
        until(lambda: store.uploaded_sequence(source.name, 1) == source.next - 1, "the upload")
        (spooled,) = (each for each in (path / "spool").rglob("*") if each.is_file())
        spoil(spooled, ROTS[rot])
        if rot == "cut in half":
            crash(source.writer)
        store.context.records.forget_source(source.name)
        assert_sound(store, source)
        if rot != "cut in half":
            source.write_random(2)
            source.cut()
            source.commit()
            assert_sound(store, source)
            crash(source.writer)
        source.writer = store.writer(source.name, generation=source.generation)
        source.write_random(2)
        source.cut()
        source.commit()
        source.writer.close()
        assert_sound(store, source)
    shutil.rmtree(path / "cache", ignore_errors=True)
    assert not [each for each in (path / "spool").rglob("*") if each.is_file()]
    with Store.open(path, storage_options=options) as store:
        assert_sound(store, source)
        assert not store.scrub().records_damaged


@pytest.mark.fault(2)
def test_commands_read_past_rotten_copies(
    tmp_path: Path, proxy: Proxy, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "store"
    source = filled(path, proxy, bucket, None)
    newest = list(source.points)[-1]
    for words in (("verify", newest), ("restore", newest, "--to", f"data={tmp_path / 'disk'}")):
        with reopened(path, None) as store:
            assert_sound(store, source)
        for copy in copies(path):
            spoil(copy, ROTS["a page inverted"])
        assert main(app, [*words, "--store", str(path)]) == 0, capsys.readouterr().err
    assert (tmp_path / "disk").read_bytes() == source.points[newest].data[1]
    with reopened(path, None) as store:
        assert_sound(store, source)
