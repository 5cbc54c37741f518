"""A store whose segments are objects: what it holds is what was committed, at every host that opens it."""

from __future__ import annotations

from pathlib import Path

import pytest

from drengine.model.errors import DrengineError
from drengine.store.blobs.s3.errors import OBJECT_STORE_TAKEN
from drengine.store.blobs.s3.options import ACK_LOCAL, ACK_OBJECT, S3Options
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
