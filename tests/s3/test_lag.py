"""What an acknowledgement stands for: with `object` the object store has it; with `local` the lag is told, and ends."""

from __future__ import annotations

import secrets
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.devices import until
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.store.blobs.s3.errors import OBJECT_STORE_AWAY
from drengine.store.blobs.s3.options import ACK_LOCAL, S3Options
from drengine.store.blobs.s3.place import S3Place
from drengine.store.blobs.s3.trial import try_place
from drengine.store.care.objects import delete_decided
from drengine.store.care.retention import RetentionPolicy
from drengine.store.store import Store
from drengine.target.metrics import TargetMetrics
from drengine.target.sources import Sources
from tests.s3.proxy import BROKEN, fault_proxy
from tests.s3.server import S3Server, client
from tests.s3.stores import place, stored_in
from tests.store.harness import TINY, Source, check_point

LOCAL = S3Options(ack=ACK_LOCAL, upload_interval=0.01, patience=0.1)
OBJECT = S3Options(patience=0.1)


def figures(store: Store) -> dict[str, float]:
    metrics = TargetMetrics(Sources(), SystemClock())
    metrics.uploads = store.upload_backlog
    return {sample.family.name: sample.value for sample in metrics._gauges() if "upload" in sample.family.name}


def test_the_lag_of_local_acknowledgements_is_told_and_ends(tmp_path: Path, s3: S3Server, bucket: str) -> None:
    with fault_proxy(s3) as proxy:
        where = stored_in(proxy.endpoint, bucket)
        with Store.create(tmp_path / "store", stored_in=where, storage_options=LOCAL, options=TINY) as store:
            source = Source(store, data=1 << 20)
            first = source.cut()
            source.commit()
            until(lambda: store.uploaded_sequence("web1", 1) == source.point(first).sequence, "the first upload")
            proxy.plan = lambda request: BROKEN
            source.write_random(4)
            second = source.cut()
            source.commit()
            source.check()
            until(lambda: store.upload_backlog().failing, "a failed upload")
            told = figures(store)
            assert told["target_upload_backlog_bytes"] > 0 and told["target_upload_lag_seconds"] > 0
            assert store.uploaded_sequence("web1", 1) == source.point(first).sequence
            proxy.plan = None
            until(lambda: store.uploaded_sequence("web1", 1) == source.point(second).sequence, "the second upload")
            assert set(figures(store).values()) == {0.0}
            source.writer.close()


def test_nothing_is_acknowledged_under_object_before_the_object_store_has_it(
    tmp_path: Path, s3: S3Server, bucket: str
) -> None:
    with fault_proxy(s3) as proxy:
        where = stored_in(proxy.endpoint, bucket)
        with Store.create(tmp_path / "store", stored_in=where, storage_options=OBJECT, options=TINY) as store:
            source = Source(store, data=1 << 20)
            source.cut()
            source.commit()
            assert store.uploaded_sequence("web1", 1) == 2
            proxy.plan = lambda request: BROKEN
            source.write_random(2)
            with pytest.raises(DrengineError) as caught:
                source.commit()
            assert caught.value.kind is OBJECT_STORE_AWAY
            proxy.plan = None


@pytest.mark.fault(4)
def test_what_a_killed_process_left_in_the_spool_is_uploaded_by_the_next_one(
    tmp_path: Path, s3: S3Server, bucket: str
) -> None:
    """The child acknowledges under `local` while nothing gets through, and is killed."""
    with fault_proxy(s3) as proxy:
        where = stored_in(proxy.endpoint, bucket)
        Store.create(tmp_path / "store", stored_in=where, storage_options=LOCAL, options=TINY).close()
        proxy.plan = lambda request: BROKEN
        child = f"""
from pathlib import Path
from drengine.store.store import Store
from tests.s3.test_lag import LOCAL
from tests.store.harness import TINY, Source
store = Store.open(Path({str(tmp_path / "store")!r}), storage_options=LOCAL, options=TINY)
source = Source(store, data=1 << 20)
for _ in range(5):
    source.write_random(3)
    print(source.cut(), flush=True)
    source.commit()
import os; os.kill(os.getpid(), 9)
"""
        done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=False)
        points = done.stdout.split()
        assert len(points) == 5, done.stderr
        with Store.open(tmp_path / "store", storage_options=LOCAL, options=TINY) as store:
            assert [point.id for point in store.points("web1")] == points
            assert store.uploaded_sequence("web1", 1) == 0
            proxy.plan = None
            store.compact()
            newest = store.points("web1")[-1].sequence
            until(lambda: store.uploaded_sequence("web1", 1) == newest, "the uploads of what was left")
            assert not store.scrub().records_damaged


def test_the_trial_measures_and_passes(s3: S3Server, bucket: str) -> None:
    trials = try_place(S3Place.parse(place(s3.endpoint, bucket)), S3Options())
    assert all(each.is_passed for each in trials)
    assert next(each.detail for each in trials if each.name == "object lock").startswith("none")


def test_a_store_lives_in_a_bucket_with_object_lock_and_what_it_deletes_is_kept_there(
    tmp_path: Path, s3: S3Server
) -> None:
    """Deleting leaves a marker: it is never refused, and nobody can delete the version behind it before its time."""
    raw, bucket = client(s3.endpoint), f"locked-{secrets.token_hex(6)}"
    raw.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    trials = try_place(S3Place.parse(place(s3.endpoint, bucket)), S3Options())
    assert next(each.detail for each in trials if each.name == "object lock").startswith("on, without")
    rule = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}}
    raw.put_object_lock_configuration(
        Bucket=bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
    )
    trials = try_place(S3Place.parse(place(s3.endpoint, bucket)), S3Options())
    assert all(each.is_passed for each in trials), trials
    assert next(each.detail for each in trials if each.name == "object lock").startswith("COMPLIANCE: ")
    where, options = stored_in(s3.endpoint, bucket), replace(OBJECT, delete_delay=0.0)
    with Store.create(tmp_path / "store", stored_in=where, storage_options=options, options=TINY) as store:
        source = Source(store, data=1 << 20)
        for fill in b"abc":
            source.write(1, 0, bytes([fill]) * 60_000, level=None)
            source.cut()
            source.commit()
        there = set(keys_in(raw, bucket))
        store.retain(RetentionPolicy(0, ()), store.context.clock.now_ns())
        store.compact()
        delete_decided(store.context)
        source.check()
        gone = there - set(keys_in(raw, bucket))
        assert gone and not store.context.catalogue.object_removals()
        versions = raw.list_object_versions(Bucket=bucket)["Versions"]
        kept = {each["Key"]: each["VersionId"] for each in versions if each["Key"] in gone}
        assert set(kept) == gone
        for key, version in kept.items():
            answer = raw.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key, "VersionId": version}]})
            assert answer["Errors"][0]["Code"] == "AccessDenied"
        source.writer.close()
        alive = keys_in(raw, bucket)
    # Somebody with the target's keys deletes all that is there; an administrator takes back the markers of that.
    raw.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in alive]})
    assert not keys_in(raw, bucket)
    for each in raw.list_object_versions(Bucket=bucket)["DeleteMarkers"]:
        if each["Key"] in alive:
            raw.delete_object(Bucket=bucket, Key=each["Key"], VersionId=each["VersionId"])
    assert not Store.rebuild(tmp_path / "again", stored_in=where, storage_options=options, options=TINY).lost
    with Store.open(tmp_path / "again", storage_options=options, options=TINY) as store:
        points = store.points("web1")
        assert points[-1].id == list(source.points)[-1]
        for point in points:
            check_point(store, point, source.points[point.id])


def keys_in(raw: Any, bucket: str) -> list[str]:
    """Of objects that a listing finds."""
    return [each["Key"] for each in raw.list_objects_v2(Bucket=bucket).get("Contents", [])]
