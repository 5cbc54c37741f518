"""A store whose segments are objects: what it holds is what was committed, at every host that opens it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from drengine.model.errors import DrengineError
from drengine.store.blobs.s3.errors import OBJECT_MISSING, OBJECT_STORE_TAKEN
from drengine.store.blobs.s3.options import ACK_LOCAL, ACK_OBJECT, S3Options
from drengine.store.identity import StoreFile, read_store_file, write_store_file
from drengine.store.names import segment_name
from drengine.store.store import Store
from tests.s3.server import S3Server, client
from tests.s3.stores import stored_in
from tests.store.harness import TINY, Source

MIB = 1 << 20


@pytest.fixture(params=[ACK_OBJECT, ACK_LOCAL])
def options(request: pytest.FixtureRequest) -> S3Options:
    return S3Options(ack=request.param, upload_interval=0.01, delete_delay=0.0)


def create(path: Path, s3: S3Server, bucket: str, options: S3Options) -> Store:
    return Store.create(path, stored_in=stored_in(s3.endpoint, bucket), storage_options=options, options=TINY)


def test_what_was_committed_is_read_after_the_local_copies_are_gone(
    tmp_path: Path, s3: S3Server, bucket: str, options: S3Options
) -> None:
    with create(tmp_path / "store", s3, bucket, options) as store:
        source = Source(store, data=MIB, log=70_000)
        for _ in range(12):
            source.write_random(3)
            source.cut()
            source.commit()
        source.check()
        source.writer.close()
    for path in sorted((tmp_path / "store" / "cache").rglob("*")):
        if path.is_file():
            path.unlink()
    assert not [path for path in (tmp_path / "store" / "spool").rglob("*") if path.is_file()]
    with Store.open(tmp_path / "store", storage_options=options, options=TINY) as store:
        source.store = store
        source.check()
        assert not store.scrub().records_damaged


def test_two_stores_do_not_share_a_place(tmp_path: Path, s3: S3Server, bucket: str, options: S3Options) -> None:
    create(tmp_path / "one", s3, bucket, options).close()
    before = {each["Key"] for each in client(s3.endpoint).list_objects_v2(Bucket=bucket)["Contents"]}
    with pytest.raises(DrengineError) as caught:
        create(tmp_path / "two", s3, bucket, options)
    assert caught.value.kind is OBJECT_STORE_TAKEN
    assert {each["Key"] for each in client(s3.endpoint).list_objects_v2(Bucket=bucket)["Contents"]} == before
    Store.open(tmp_path / "one", storage_options=options).close()


def test_the_host_is_lost_and_the_store_is_rebuilt_from_the_bucket(
    tmp_path: Path, s3: S3Server, bucket: str, options: S3Options
) -> None:
    with create(tmp_path / "store", s3, bucket, options) as store:
        identity = store.identity
        source = Source(store, data=MIB, log=70_000)
        for _ in range(8):
            source.write_random(3)
            source.cut()
            source.commit()
        store.pin(source.point(list(source.points)[2]), "keep")
        source.writer.close()
    shutil.rmtree(tmp_path / "store")
    where = stored_in(s3.endpoint, bucket)
    report = Store.rebuild(tmp_path / "new", stored_in=where, storage_options=options, options=TINY)
    assert not report.lost and report.points == 8
    with Store.open(tmp_path / "new", storage_options=options, options=TINY) as store:
        assert store.identity == identity
        source.store = store
        source.check()
        assert source.point(list(source.points)[2]).pinned
        found = store.compare_objects()
        assert found.named and not found.missing
        again = Source.__new__(Source)
        again.__dict__.update(source.__dict__)
        again.writer = store.writer(source.name, generation=source.generation)
        again.write_random(3)
        again.cut()
        again.commit()
        again.check()
        again.writer.close()


@pytest.mark.fault(81)
def test_objects_that_are_gone_are_found_and_told(
    tmp_path: Path, s3: S3Server, bucket: str, options: S3Options
) -> None:
    with create(tmp_path / "store", s3, bucket, options) as store:
        source = Source(store, data=MIB)
        for _ in range(6):
            source.write_random(4)
            source.cut()
            source.commit()
        source.writer.close()
    with Store.open(tmp_path / "store", storage_options=options, options=TINY) as store:  # all is uploaded by now
        victim = store.context.catalogue.parts("web1", segment_name("web1", 1, 2, 1))[0].key
    behind = client(s3.endpoint)
    behind.delete_object(Bucket=bucket, Key=f"store/{victim}")
    behind.put_object(
        Bucket=bucket, Key="store/segments/web1/00000001/00000099.0001.seg/0123456789abcdef/stray", Body=b""
    )
    behind.put_object(
        Bucket=bucket, Key=f"store/segments/web1/00000001/00000099.0001.seg/{'0' * 16}/{'0' * 12}-{'0' * 8}", Body=b"x"
    )
    shutil.rmtree(tmp_path / "store" / "cache")
    with Store.open(tmp_path / "store", storage_options=options, options=TINY) as store:
        found = store.compare_objects()
        assert found.missing == [victim]
        assert found.unnamed == 1 and found.unnamed_bytes == 1
        report = store.scrub()
        assert report.records_damaged and report.points_damaged
        newest = store.points("web1")[-1]
        assert newest.damaged == any(point == ("web1", newest.id) for point in report.points_damaged)
        store.compact()
    keys = [each["Key"] for each in behind.list_objects_v2(Bucket=bucket)["Contents"]]
    assert f"store/segments/web1/00000001/00000099.0001.seg/{'0' * 16}/{'0' * 12}-{'0' * 8}" in keys


@pytest.mark.fault(18)
def test_a_bucket_of_another_store_is_refused(tmp_path: Path, s3: S3Server, bucket: str, options: S3Options) -> None:
    create(tmp_path / "one", s3, bucket, options).close()
    other = s3.bucket()
    create(tmp_path / "two", s3, other, options).close()
    identity = read_store_file(tmp_path / "one").identity
    write_store_file(tmp_path / "one", StoreFile(identity, stored_in(s3.endpoint, other)))
    with pytest.raises(DrengineError) as caught:
        Store.open(tmp_path / "one", storage_options=options)
    assert caught.value.kind is OBJECT_STORE_TAKEN
    write_store_file(tmp_path / "one", StoreFile(identity, stored_in(s3.endpoint, s3.bucket())))
    with pytest.raises(DrengineError) as caught:
        Store.open(tmp_path / "one", storage_options=options)
    assert caught.value.kind is OBJECT_MISSING
