"""What is wrong with an object store is one clear error; nothing is lost, and nothing changed."""

from __future__ import annotations

import hashlib
import io
import json
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import urllib3
from botocore.awsrequest import AWSResponse

from drengine.cli.main import app
from drengine.model.errors import DrengineError, ErrorKind
from drengine.store.blobs.s3.boto import BotoClient
from drengine.store.blobs.s3.errors import (
    OBJECT_STORE_AWAY,
    OBJECT_STORE_BUSY,
    OBJECT_STORE_CLOCK,
    OBJECT_STORE_DENIED,
    OBJECT_STORE_KEYS,
    OBJECT_STORE_PLACE,
    OBJECT_STORE_REGION,
    OBJECT_STORE_TAKEN,
)
from drengine.store.blobs.s3.options import S3Options
from drengine.store.blobs.s3.place import S3Place
from drengine.store.errors import STORAGE_MISMATCH
from drengine.store.store import Store
from drengine.terminal import main
from tests.s3.proxy import Fault, Way, fault_proxy, nth
from tests.s3.server import OWNER, READER, Keys, S3Server
from tests.s3.stores import place, stored_in, use_keys
from tests.store.harness import TINY, Source

QUICK = S3Options(patience=0.2, request_seconds=2.0)


@pytest.fixture(autouse=True)
def keys() -> Any:
    """Whatever keys a test uses, the next one has the owner's."""
    yield
    use_keys()


def answer(status: int, code: str) -> Fault:
    return Fault(Way.ANSWER, status=status, code=code)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (answer(503, "SlowDown"), OBJECT_STORE_BUSY),
        (answer(429, "TooManyRequests"), OBJECT_STORE_BUSY),
        (answer(500, "InternalError"), OBJECT_STORE_AWAY),
        (answer(403, "AccessDenied"), OBJECT_STORE_DENIED),
        (answer(403, "InvalidAccessKeyId"), OBJECT_STORE_KEYS),
        (answer(403, "SignatureDoesNotMatch"), OBJECT_STORE_KEYS),
        (answer(400, "ExpiredToken"), OBJECT_STORE_KEYS),
        (answer(403, "RequestTimeTooSkewed"), OBJECT_STORE_CLOCK),
        (answer(301, "PermanentRedirect"), OBJECT_STORE_REGION),
        (answer(400, "AuthorizationHeaderMalformed"), OBJECT_STORE_REGION),
        (answer(404, "NoSuchBucket"), OBJECT_STORE_PLACE),
        (Fault(Way.BREAK), OBJECT_STORE_AWAY),
    ],
)
def test_each_refusal_has_a_kind_and_nothing_is_lost(
    tmp_path: Path, s3: S3Server, bucket: str, fault: Fault, kind: ErrorKind
) -> None:
    with fault_proxy(s3) as proxy:
        where = stored_in(proxy.endpoint, bucket)
        with Store.create(tmp_path / "store", stored_in=where, storage_options=QUICK, options=TINY) as store:
            source = Source(store, data=1 << 20)
            source.write_random(3)
            source.cut()
            source.commit()
            proxy.plan = nth("PutObject", fault=fault)
            source.write_random(1)
            with pytest.raises(DrengineError) as caught:
                source.commit()
            assert caught.value.kind is kind
            assert source.writer.durable.sequence == source.point(next(iter(source.points))).sequence
            proxy.plan = None
            source.writer.close()
            source.disk = source.committed.copy()
            source.writer = store.writer(source.name, generation=source.generation)
            source.write_random(2)
            source.cut()
            source.commit()
            source.check()
            source.writer.close()


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (Keys("nobody", "owner-secret"), OBJECT_STORE_KEYS),
        (Keys(OWNER.access, "wrong"), OBJECT_STORE_KEYS),
        (Keys("", ""), OBJECT_STORE_KEYS),
        (READER, OBJECT_STORE_DENIED),
    ],
)
def test_a_real_server_refuses_wrong_keys_and_missing_rights(
    tmp_path: Path, s3: S3Server, bucket: str, keys: Keys, kind: ErrorKind
) -> None:
    use_keys(keys)
    with pytest.raises(DrengineError) as caught:
        Store.create(tmp_path / "store", stored_in=stored_in(s3.endpoint, bucket), storage_options=QUICK)
    assert caught.value.kind is kind
    assert "secret" not in str(caught.value)
    use_keys()
    Store.create(tmp_path / "store", stored_in=stored_in(s3.endpoint, bucket), storage_options=QUICK).close()


def test_a_bucket_that_is_not_there(tmp_path: Path, s3: S3Server) -> None:
    with pytest.raises(DrengineError) as caught:
        Store.create(tmp_path / "store", stored_in=stored_in(s3.endpoint, "no-such-bucket"), storage_options=QUICK)
    assert caught.value.kind is OBJECT_STORE_PLACE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bucket/prefix",
        "s3://",
        "s3://UPPER",
        "s3://user:secret@bucket/x",
        "s3://bucket/a/../b",
        "s3://bucket/x?secret_key=abc",
        "s3://bucket/x?region=eu west",
        "s3://bucket/x?endpoint=ftp://host",
        "s3://bucket/x?endpoint=http://user:secret@host",
        "s3://bucket/x?style=both",
        "s3://bucket/x?region=a&region=b",
        "s3://arn:aws:s3-outposts:us-east-1:1:outpost/op-1/accesspoint/ap",
    ],
)
def test_a_place_that_is_none(text: str) -> None:
    with pytest.raises(DrengineError) as caught:
        S3Place.parse(text)
    assert caught.value.kind is OBJECT_STORE_PLACE
    assert "secret@" not in str(caught.value) and "abc" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket",
        "s3://bucket/prefix/more",
        "s3://bucket/p?endpoint=http://127.0.0.1:9000&region=us-east-1&style=path",
        "s3://arn:aws:s3-outposts:us-east-1:123456789012:outpost/op-01ac5d28a6a232904/accesspoint/replicas/shop",
        "s3://arn:aws:s3:eu-central-1:123456789012:accesspoint/replicas/shop?region=eu-central-1",
    ],
)
def test_a_place_is_written_as_it_was_read(text: str) -> None:
    assert str(S3Place.parse(text)) == text


def test_a_local_store_with_the_options_of_an_object_store(tmp_path: Path) -> None:
    """What `ack` promises would not be held."""
    Store.create(tmp_path / "store").close()
    before = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}
    with pytest.raises(DrengineError) as caught:
        Store.open(tmp_path / "store", storage_options=S3Options(patience=7.0))
    assert caught.value.kind is STORAGE_MISMATCH
    assert before == {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}
    Store.open(tmp_path / "store", storage_options=S3Options()).close()


@pytest.mark.parametrize(
    ("bucket", "endpoint", "host", "scope"),
    [
        (
            "arn:aws:s3-outposts:us-east-1:123456789012:outpost/op-01ac5d28a6a232904/accesspoint/replicas",
            "",
            "replicas-123456789012.op-01ac5d28a6a232904.s3-outposts.us-east-1.amazonaws.com",
            "us-east-1/s3-outposts",
        ),
        (
            "arn:aws:s3:eu-central-1:123456789012:accesspoint/replicas",
            "",
            "replicas-123456789012.s3-accesspoint.eu-central-1.amazonaws.com",
            "eu-central-1/s3",
        ),
        ("bucket", "https://s3.example&style=virtual", "bucket.s3.example", "eu-1/s3"),
        ("bucket", "https://s3.example&style=path", "s3.example", "eu-1/s3"),
    ],
)
def test_requests_are_addressed_and_signed_for_what_the_place_names(
    bucket: str, endpoint: str, host: str, scope: str
) -> None:
    use_keys()
    where = f"s3://{bucket}/store" + (f"?endpoint={endpoint}&region=eu-1" if endpoint else "")
    client = BotoClient(S3Place.parse(where), S3Options())
    sent: list[Any] = []

    def answer(request: Any, **_: Any) -> Any:
        sent.append(request)
        headers = {"ETag": f'"{hashlib.md5(b"data").hexdigest()}"'}
        return AWSResponse(request.url, 200, headers, urllib3.HTTPResponse(io.BytesIO(), preload_content=False))

    client._s3.meta.events.register("before-send.s3", answer)
    client.put("name", b"data")
    (request,) = sent
    assert urllib.parse.urlsplit(request.url).hostname == host
    assert f"/{scope}/aws4_request" in request.headers["Authorization"].decode()
    assert request.headers["Content-MD5"]


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(app, list(words))
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out, said.err


def test_a_bucket_is_tried_before_it_is_used(
    s3: S3Server, bucket: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = command(capsys, "store", "check", place(s3.endpoint, bucket), "--json")
    assert code == 0
    trials = {each["name"]: each for each in json.loads(out)["trials"]}
    assert all(each["passed"] for each in trials.values())
    assert set(trials) == {
        *("list", "clock", "object lock", "put", "head", "range", "list again", "multipart", "throughput", "delete")
    }
    code, _, _ = command(
        capsys, "store", "create", str(tmp_path / "s"), "--storage", "s3", "--place", place(s3.endpoint, bucket)
    )
    assert code == 0, "the trial left nothing behind"
    assert command(capsys, "store", "check", "--store", str(tmp_path / "s"))[0] == 0
    code, _, err = command(capsys, "store", "check", place(s3.endpoint, bucket))
    assert code == OBJECT_STORE_TAKEN.exit_code and "hint:" in err


def reading(operation: str) -> Callable[[Any], Fault | None]:
    return nth(operation, fault=answer(403, "AccessDenied"))


@pytest.mark.parametrize(
    ("operation", "trial"),
    [("PutObject", "put"), ("HeadObject", "head"), ("GetObject", "range"), ("DeleteObjects", "delete")],
)
def test_the_trial_says_which_operation_is_refused(
    s3: S3Server, bucket: str, capsys: pytest.CaptureFixture[str], operation: str, trial: str
) -> None:
    with fault_proxy(s3, reading(operation)) as proxy:
        code, out, err = command(capsys, "store", "check", place(proxy.endpoint, bucket), "--json")
    assert code == OBJECT_STORE_DENIED.exit_code and json.loads(err)["hint"]
    failed = [each["name"] for each in json.loads(out)["trials"] if not each["passed"]]
    assert failed[0] == trial
