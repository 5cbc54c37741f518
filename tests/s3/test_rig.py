"""The rig itself: what the proxy is told happens, and the log says what the server did."""

from __future__ import annotations

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from tests.s3.proxy import (
    APPLIED_AND_FAILED,
    BROKEN,
    DENIED,
    INTERNAL,
    LOST_REPLY,
    SHORT,
    SLOW_DOWN,
    TRUNCATED,
    Fault,
    Proxy,
    fault_proxy,
    nth,
)
from tests.s3.server import S3Server, client


def put(proxy: Proxy, bucket: str, key: str, data: bytes = b"0123456789") -> str:
    """The error's code, or nothing."""
    plain = client(proxy.endpoint, attempts=1)
    try:
        plain.put_object(Bucket=bucket, Key=key, Body=data)
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    except BotoCoreError as error:
        return type(error).__name__
    return ""


def stored(server: S3Server, bucket: str) -> dict[str, int]:
    found = client(server.endpoint).list_objects_v2(Bucket=bucket).get("Contents", [])
    return {each["Key"]: each["Size"] for each in found}


def test_an_honest_proxy_forwards_and_logs(s3: S3Server) -> None:
    bucket = s3.bucket()
    with fault_proxy(s3) as proxy:
        assert put(proxy, bucket, "a/b") == ""
        got = client(proxy.endpoint).get_object(Bucket=bucket, Key="a/b", Range="bytes=2-4")["Body"].read()
        assert got == b"234"
        assert [(entry.request.operation, entry.request.key, entry.answered) for entry in proxy.log] == [
            ("PutObject", "a/b", 200),
            ("GetObject", "a/b", 206),
        ]
        assert proxy.keys_written() == {"a/b": 1}


@pytest.mark.parametrize(
    ("fault", "says", "is_stored"),
    [
        (SLOW_DOWN, "SlowDown", False),
        (INTERNAL, "InternalError", False),
        (DENIED, "AccessDenied", False),
        (APPLIED_AND_FAILED, "InternalError", True),
        (BROKEN, "ConnectionClosedError", False),
        (LOST_REPLY, "ConnectionClosedError", True),
    ],
)
def test_a_fault_is_what_it_says(s3: S3Server, fault: Fault, says: str, is_stored: bool) -> None:
    bucket = s3.bucket()
    with fault_proxy(s3, nth("PutObject", fault=fault)) as proxy:
        assert put(proxy, bucket, "k") == says
    assert ("k" in stored(s3, bucket)) is is_stored


def test_a_short_body_is_really_stored_short(s3: S3Server) -> None:
    bucket = s3.bucket()
    with fault_proxy(s3, nth("PutObject", 1, fault=SHORT)) as proxy:
        put(proxy, bucket, "k")
    assert stored(s3, bucket) == {"k": 5}


def test_a_truncated_answer_breaks_off(s3: S3Server) -> None:
    bucket = s3.bucket()
    client(s3.endpoint).put_object(Bucket=bucket, Key="k", Body=b"0123456789")
    with fault_proxy(s3, nth("GetObject", fault=TRUNCATED)) as proxy, pytest.raises(BotoCoreError):
        client(proxy.endpoint).get_object(Bucket=bucket, Key="k")["Body"].read()


def test_the_server_killed_and_started_again_has_what_it_had(s3_of_its_own: S3Server) -> None:
    server = s3_of_its_own
    bucket = server.bucket()
    with fault_proxy(server) as proxy:
        assert put(proxy, bucket, "k") == ""
        server.kill()
        assert put(proxy, bucket, "l") != ""
        server.start()
        assert put(proxy, bucket, "m") == ""
    assert set(stored(server, bucket)) >= {"k", "m"}
