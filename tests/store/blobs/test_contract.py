"""One contract for every storage: what the store relies on, held by each implementation."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drengine.store.blobs import Buffer, FaultyStorage, LocalStorage, MemoryStorage, ObjectStorage, Storage
from drengine.store.blobs.s3.options import ACK_LOCAL, ACK_OBJECT, S3Options
from drengine.store.blobs.s3.storage import S3Storage
from tests.s3.stores import commit, place, storage_with_catalogue
from tests.store.blobs.rows import RowStorage

IMPLEMENTATIONS: dict[str, Callable[[Path], Storage]] = {
    "local": LocalStorage,
    "memory": lambda _: MemoryStorage(),
    "memory without append": lambda _: MemoryStorage(append=False),
    "a plug-in that lives in tests only": lambda root: RowStorage(root, str(root.parent / "rows.sqlite")),
    "local behind the fault wrapper": lambda root: FaultyStorage(LocalStorage(root)),
}
S3_IMPLEMENTATIONS = {
    f"s3, ack = {ack}, {cache} bytes of cache": S3Options(ack=ack, cache=cache, upload_interval=0.01)
    for ack, cache in ((ACK_OBJECT, 1 << 30), (ACK_LOCAL, 1 << 30), (ACK_OBJECT, 0))
}
BAD_NAMES = ["", "/etc/passwd", "../x", "a/../b", "a/./b", "a//b", "a/", ".", "..", "a\0b", "/"]


@pytest.fixture(params=[*IMPLEMENTATIONS, *S3_IMPLEMENTATIONS])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    root = tmp_path / "root"
    root.mkdir()
    if options := S3_IMPLEMENTATIONS.get(request.param):
        server = request.getfixturevalue("s3")
        made: Storage = storage_with_catalogue(root, place(server.endpoint, server.bucket()), options)
    else:
        made = IMPLEMENTATIONS[request.param](root)
    yield made
    made.close()


def test_what_keeps_objects_says_so(storage: Storage) -> None:
    assert isinstance(storage, ObjectStorage) == isinstance(storage, S3Storage)


def write(storage: Storage, name: str, *parts: Buffer) -> None:
    appender = storage.create(name)
    appender.append(*parts)
    commit(storage, appender.sync())
    appender.close()


def read(storage: Storage, name: str) -> bytes:
    reader = storage.open(name)
    try:
        return reader.read_at(0, reader.size())
    finally:
        reader.close()


def test_what_is_appended_and_synced_is_read_back(storage: Storage) -> None:
    write(storage, "a/b/c", b"one", b"", memoryview(b"two"), bytearray(b"three"))
    storage.sync_dir("a/b")
    assert read(storage, "a/b/c") == b"onetwothree"


def test_a_file_grows_after_a_sync_where_the_storage_says_so(storage: Storage) -> None:
    appender = storage.create("a/grows")
    appender.append(b"first")
    commit(storage, appender.sync())
    if not storage.abilities.append:
        with pytest.raises(OSError) as caught:
            appender.append(b"second")
        assert caught.value.errno == errno.EROFS
        assert read(storage, "a/grows") == b"first"
        return
    assert read(storage, "a/grows") == b"first"
    reader = storage.open("a/grows")
    appender.append(b" second")
    commit(storage, appender.sync())
    appender.close()
    assert reader.size() == 12
    assert reader.read_at(0, 100) == b"first second"
    reader.close()


def test_a_file_that_was_begun_is_gone_on_with_from_where_it_is_whole(storage: Storage) -> None:
    if not storage.abilities.append:
        return
    write(storage, "a/begun", b"whole and torn")
    reader = storage.open("a/begun")
    appender = storage.resume("a/begun", 5)
    reader.close()
    appender.append(b", then more")
    commit(storage, appender.sync())
    assert read(storage, "a/begun") == b"whole, then more"
    appender.append(b", and more")
    commit(storage, appender.sync())
    appender.close()
    assert read(storage, "a/begun") == b"whole, then more, and more"
    appender = storage.resume("a/begun", 16)
    commit(storage, appender.sync())
    appender.close()
    with pytest.raises(OSError) as caught:
        storage.resume("a/begun", 17)
    assert caught.value.errno == errno.EINVAL
    assert read(storage, "a/begun") == b"whole, then more"
    with pytest.raises(FileNotFoundError):
        storage.resume("a/missing", 0)


def test_a_taken_name_is_refused_and_left_alone(storage: Storage) -> None:
    write(storage, "a/taken", b"old")
    with pytest.raises(FileExistsError):
        storage.create("a/taken")
    assert read(storage, "a/taken") == b"old"


def test_a_missing_file_says_so(storage: Storage) -> None:
    for name in ("none", "no/such/folder"):
        with pytest.raises(FileNotFoundError):
            storage.open(name)


def test_reading_stops_at_the_end(storage: Storage) -> None:
    storage.put("f", b"0123456789")
    reader = storage.open("f")
    assert reader.read_at(0, 4) == b"0123"
    assert reader.read_at(8, 100) == b"89"
    assert reader.read_at(10, 1) == b""
    assert reader.read_at(100, 1) == b""
    assert bytes(reader.map()) == b"0123456789"
    reader.close()
    reader.close()


def test_an_empty_file_reads_as_empty(storage: Storage) -> None:
    storage.put("empty", b"")
    reader = storage.open("empty")
    assert reader.size() == 0
    assert bytes(reader.map()) == b""
    reader.close()


def test_what_was_mapped_stays_after_close(storage: Storage) -> None:
    storage.put("f", b"mapped")
    reader = storage.open("f")
    data = reader.map()
    reader.close()
    assert bytes(data) == b"mapped"


def test_put_replaces_the_whole_file_and_may_be_repeated(storage: Storage) -> None:
    storage.put("a/f", b"a long first version")
    reader = storage.open("a/f")
    storage.put("a/f", b"second")
    storage.put("a/f", memoryview(b"second"))
    assert read(storage, "a/f") == b"second"
    assert reader.read_at(0, 100) == b"a long first version"
    reader.close()


def test_list_takes_plain_text_prefixes_and_sorts(storage: Storage) -> None:
    for name in ("s/web/1/x", "s/web/10/x", "s/web/1/a", "s/manifest-1", "s/manifest-2", "t"):
        storage.put(name, b"")
    assert storage.list("s/manifest-") == ["s/manifest-1", "s/manifest-2"]
    assert storage.list("s/web/1/") == ["s/web/1/a", "s/web/1/x"]
    assert storage.list("s/web/1") == ["s/web/1/a", "s/web/1/x", "s/web/10/x"]
    assert storage.list("s/web/1/x") == ["s/web/1/x"]
    assert storage.list("") == ["s/manifest-1", "s/manifest-2", "s/web/1/a", "s/web/1/x", "s/web/10/x", "t"]
    assert storage.list("nothing/") == []
    assert storage.list("t/below-a-file/") == []
    with pytest.raises(OSError, match="no name"):
        storage.list("../")


def test_delete_removes_and_is_no_error_twice(storage: Storage) -> None:
    storage.put("a/f", b"x")
    reader = storage.open("a/f")
    storage.delete("a/f")
    storage.delete("a/f")
    storage.delete("never/was")
    assert storage.list("") == []
    assert reader.read_at(0, 1) == b"x"
    reader.close()
    storage.put("a/f", b"y")
    assert read(storage, "a/f") == b"y"


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_could_lead_elsewhere_are_refused(storage: Storage, name: str) -> None:
    for attempt in (
        lambda: storage.create(name),
        lambda: storage.open(name),
        lambda: storage.put(name, b""),
        lambda: storage.delete(name),
    ):
        with pytest.raises(OSError, match="no name") as caught:
            attempt()
        assert caught.value.errno == errno.EINVAL
    assert storage.list("") == []


def test_of_two_who_put_at_once_one_wins_whole(storage: Storage) -> None:
    versions = [bytes([65 + number]) * 300_000 for number in range(4)]
    barrier = threading.Barrier(len(versions))

    def put(data: bytes) -> None:
        barrier.wait()
        for _ in range(5):
            storage.put("layers/one", data)

    threads = [threading.Thread(target=put, args=[data]) for data in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(storage, "layers/one") in versions
    assert storage.list("") == ["layers/one"]
    assert storage.sweep() == 0


def test_free_space_is_a_number_or_unlimited(storage: Storage) -> None:
    free = storage.free_bytes()
    assert free is None or free > 0


def test_the_suite_says_what_it_exercised(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f" [storage contract held by: {', '.join([*IMPLEMENTATIONS, *S3_IMPLEMENTATIONS])}]", end="")
    assert {"local", "memory", "memory without append"} <= IMPLEMENTATIONS.keys()
