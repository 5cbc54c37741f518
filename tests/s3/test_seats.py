"""Two hosts that share a store: the catalogue in PostgreSQL, the data in an object store, a seat at each."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.devices import until
from drengine.model.errors import DrengineError
from drengine.store.blobs.s3.options import ACK_LOCAL, ACK_OBJECT, S3Options
from drengine.store.errors import BRANCH_BUSY, NOT_UPLOADED
from drengine.store.locks import Holder
from drengine.store.store import Store
from tests.postgres import Postgres
from tests.s3.proxy import BROKEN, Proxy, fault_proxy
from tests.s3.server import S3Server
from tests.s3.stores import stored_in
from tests.store.harness import TINY, Source, crash

OBJECT = S3Options(ack=ACK_OBJECT, delete_delay=0.0, patience=0.5)
LOCAL = S3Options(ack=ACK_LOCAL, delete_delay=0.0, patience=0.5, upload_interval=0.01)


def seats(tmp_path: Path, postgres: Postgres, proxy: Proxy, s3: S3Server) -> list[Path]:
    url, where = postgres.fresh_database(), stored_in(proxy.endpoint, s3.bucket())
    Store.create(tmp_path / "a", catalogued_in=url, stored_in=where, storage_options=OBJECT).close()
    Store.join(tmp_path / "b", url)
    return [tmp_path / "a", tmp_path / "b"]


def opened(path: Path, options: S3Options) -> Store:
    return Store.open(path, storage_options=options, options=TINY, holder=Holder(path.name, ("127.0.0.1:1",)))


def at(store: Store, source: Source) -> Source:
    """The same source and model, at another host."""
    other = Source.__new__(Source)
    other.__dict__.update(source.__dict__)
    other.store = store
    return other


@pytest.mark.fault(17)
def test_what_one_host_acknowledged_the_other_reads_and_goes_on_with(
    tmp_path: Path, postgres: Postgres, s3: S3Server
) -> None:
    with fault_proxy(s3) as proxy:
        a, b = seats(tmp_path, postgres, proxy, s3)
        with opened(a, OBJECT) as first, opened(b, OBJECT) as second:
            here = Source(first, data=1 << 20, log=70_000)
            for _ in range(6):
                here.write_random(3)
                here.cut()
                here.commit()
            at(second, here).check()
            with pytest.raises(DrengineError) as caught:
                second.writer("web1", generation=1)
            assert caught.value.kind is BRANCH_BUSY
            here.write_random(2)
            here.cut()
            here.commit()
            there = at(second, here)
            there.check()
            here.writer.close()
            there.writer = second.writer("web1", generation=1)
            for _ in range(4):
                there.write_random(3)
                there.cut()
                there.commit()
            at(first, there).check()
            there.writer.close()
            second.compact()
            first.compact()
            at(first, there).check()
            there.check()
            assert not first.compare_objects().missing and not second.compare_objects().missing
        assert max(proxy.keys_written().values()) == 1


@pytest.mark.fault(80)
def test_what_only_one_host_has_is_said_to_be_there_and_not_taken_for_damage(
    tmp_path: Path, postgres: Postgres, s3: S3Server
) -> None:
    with fault_proxy(s3) as proxy:
        a, b = seats(tmp_path, postgres, proxy, s3)
        with opened(b, LOCAL) as second:
            with opened(a, LOCAL) as first:
                here = Source(first, data=1 << 20)
                here.write_random(3)
                uploaded = here.cut()
                here.commit()
                until(lambda: second.uploaded_sequence("web1", 1) == here.point(uploaded).sequence, "the upload")
                proxy.plan = lambda request: BROKEN
                here.write_random(12)
                waiting = here.cut()
                here.commit()
                here.check()
                newest = here.point(waiting)
                with pytest.raises(DrengineError) as caught, second.view(newest) as view:
                    view.read(1, 0, 1 << 20)
                assert caught.value.kind is NOT_UPLOADED
                crash(here.writer)
            proxy.plan = None
            assert not second.scrub().records_damaged
            assert not any(point.damaged for point in second.points("web1"))
            assert second.uploaded_sequence("web1", 1) == at(second, here).point(uploaded).sequence
            with opened(a, LOCAL) as first:
                first.compact()
                until(lambda: second.uploaded_sequence("web1", 1) == newest.sequence, "what was left")
                at(second, here).check()
        assert max(proxy.keys_written().values()) == 1
