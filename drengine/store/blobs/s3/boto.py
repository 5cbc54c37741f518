"""Objects through boto3's core: one attempt a call, every error as a kind, every upload held against its hash.

The SDK's own retries and checksums are off: tries are counted in one place (client.Patience), and S3 on Outposts knows
Content-MD5 best. The SDK finds credentials by its own chain: `profile` and `credentials_file` of [s3], the environment,
its files, a container's or an instance's role.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, partial
from typing import Any

import botocore.config
import botocore.exceptions as sdk
import botocore.loaders
import botocore.session

from drengine.model.errors import DrengineError, ErrorKind
from drengine.store.blobs.s3.client import ObjectInfo, Patience
from drengine.store.blobs.s3.errors import (
    OBJECT_DAMAGED,
    OBJECT_STORE_AWAY,
    OBJECT_STORE_BUSY,
    OBJECT_STORE_CLOCK,
    OBJECT_STORE_DENIED,
    OBJECT_STORE_KEYS,
    OBJECT_STORE_PLACE,
    OBJECT_STORE_REGION,
    NeverSent,
)
from drengine.store.blobs.s3.options import S3Options
from drengine.store.blobs.s3.place import S3Place
from drengine.store.blobs.storage import Buffer
from drengine.store.errors import STORE_FULL

logging.getLogger("botocore").setLevel(logging.WARNING)  # else each start tells where credentials were found

CONNECT_SECONDS = 5.0
_KEYS_AT_ONCE = 1000
_ANY_REGION = "us-east-1"
"""What signatures name where nothing says it; servers that are not AWS mostly do not care."""
_MD5 = re.compile(r"[0-9a-f]{32}(-\d+)?")
_KINDS: dict[str, ErrorKind] = {
    code: kind
    for kind, codes in {
        OBJECT_STORE_BUSY: "SlowDown ServiceUnavailable Throttling ThrottlingException TooManyRequests "
        "RequestLimitExceeded 503 429",
        OBJECT_STORE_KEYS: "InvalidAccessKeyId SignatureDoesNotMatch ExpiredToken TokenRefreshRequired InvalidToken "
        "InvalidSecurity UnrecognizedClientException 401",
        OBJECT_STORE_REGION: "PermanentRedirect AuthorizationHeaderMalformed TemporaryRedirect 301 307 "
        "IncorrectEndpoint",
        OBJECT_STORE_PLACE: "NoSuchBucket InvalidBucketName NoSuchAccessPoint NoSuchOutpost",
        OBJECT_STORE_CLOCK: "RequestTimeTooSkewed",
        OBJECT_DAMAGED: "BadDigest XAmzContentSHA256Mismatch IncompleteBody InvalidDigest",
        OBJECT_STORE_DENIED: "AccessDenied AllAccessDisabled AccountProblem MethodNotAllowed 403 405",
        STORE_FULL: "QuotaExceeded InsufficientStorage XMinioStorageFull InsufficientCapacity 507",
    }.items()
    for code in codes.split()
}
_NO_LOCK = "ObjectLockConfigurationNotFoundError"
_MISSING = frozenset({"NoSuchKey", "404", "NoSuchUpload"})
_NO_KEYS = (
    sdk.NoCredentialsError,
    sdk.PartialCredentialsError,
    sdk.CredentialRetrievalError,
    sdk.ProfileNotFound,
    sdk.TokenRetrievalError,
    sdk.UnauthorizedSSOTokenError,
)
_NO_PLACE = (
    sdk.ParamValidationError,
    sdk.InvalidRegionError,
    sdk.NoRegionError,
    sdk.UnsupportedS3ArnError,
    sdk.UnsupportedS3ConfigurationError,
    sdk.UnsupportedS3AccesspointConfigurationError,
    sdk.EndpointProviderError,
)
_NOT_SENT = (sdk.EndpointConnectionError, sdk.ConnectTimeoutError)


class BotoClient:
    """See ObjectClient. Keys are relative to the place's prefix."""

    def __init__(self, place: S3Place, options: S3Options, patience: Patience | None = None) -> None:
        """Make the SDK's client; no request is made.

        Raises:
            DrengineError: OBJECT_STORE_KEYS, OBJECT_STORE_PLACE.
        """
        self._place = place
        self._patience = patience or Patience(total_seconds=options.patience)
        with _errors(place, "preparing"):
            self._s3 = _sdk_client(place, options)
        for operation in ("DeleteObjects", "CompleteMultipartUpload"):
            self._s3.meta.events.register(f"before-call.s3.{operation}", _add_md5)

    def put(self, key: str, data: Buffer) -> None:
        """See ObjectClient."""
        digest = hashlib.md5(data, usedforsecurity=False)
        with _errors(self._place, f"storing {key}"):
            answer = self._s3.put_object(Body=_body(data), ContentMD5=_base64(digest.digest()), **self._at(key))
        if not self._says(answer, digest.hexdigest()) and self._stored_digest(key, len(data)) != digest.digest():
            raise DrengineError(OBJECT_DAMAGED, f"{key} is not stored as it was sent")

    def get(self, key: str, offset: int, length: int) -> bytes:
        """See ObjectClient."""
        if not length:
            return b""
        span = f"bytes={offset}-{offset + length - 1}"
        with _errors(self._place, f"reading {key}"):
            data: bytes = self._s3.get_object(Range=span, **self._at(key))["Body"].read()
        if len(data) != length:
            raise DrengineError(OBJECT_DAMAGED, f"{key}: {len(data)} of {length} bytes came from {offset} on")
        return data

    def head(self, key: str) -> int:
        """See ObjectClient."""
        with _errors(self._place, f"looking at {key}"):
            return int(self._s3.head_object(**self._at(key))["ContentLength"])

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectClient."""
        begin = self._place.prefix + prefix
        following: dict[str, str] = {}
        while True:
            page = self._patience.run(partial(self._page, begin, following))
            for each in page.get("Contents", []):
                name = each["Key"].removeprefix(self._place.prefix)
                yield ObjectInfo(name, int(each["Size"]), int(each["LastModified"].timestamp() * 1e9))
            if not page.get("IsTruncated"):
                return
            following = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, keys: Sequence[str]) -> None:
        """See ObjectClient."""
        for begin in range(0, len(keys), _KEYS_AT_ONCE):
            some = keys[begin : begin + _KEYS_AT_ONCE]
            wanted = {"Objects": [{"Key": self._place.prefix + key} for key in some], "Quiet": True}
            with _errors(self._place, f"deleting {len(some)} objects, {some[0]} first"):
                answer = self._s3.delete_objects(Bucket=self._place.bucket, Delete=wanted)
            failed = [each for each in answer.get("Errors", []) if each.get("Code") not in _MISSING]
            if failed:
                kind = _KINDS.get(failed[0].get("Code", ""), OBJECT_STORE_AWAY)
                raise DrengineError(kind, f"deleting {failed[0].get('Key')}: {failed[0].get('Message')}")

    def begin_upload(self, key: str) -> str:
        """See ObjectClient."""
        with _errors(self._place, f"beginning to upload {key}"):
            return str(self._s3.create_multipart_upload(**self._at(key))["UploadId"])

    def put_part(self, key: str, upload: str, number: int, data: Buffer) -> str:
        """See ObjectClient."""
        digest = hashlib.md5(data, usedforsecurity=False)
        with _errors(self._place, f"storing part {number} of {key}"):
            answer = self._s3.upload_part(
                UploadId=upload,
                PartNumber=number,
                Body=_body(data),
                ContentMD5=_base64(digest.digest()),
                **self._at(key),
            )
        if not self._says(answer, digest.hexdigest()):
            raise DrengineError(OBJECT_DAMAGED, f"part {number} of {key} is not stored as it was sent")
        return str(answer["ETag"])

    def complete_upload(self, key: str, upload: str, tags: Sequence[str], length: int) -> None:
        """See ObjectClient."""
        parts = {"Parts": [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]}
        with _errors(self._place, f"completing {key}"):
            try:
                self._s3.complete_multipart_upload(UploadId=upload, MultipartUpload=parts, **self._at(key))
            except sdk.ClientError as error:
                if _code(error) != "NoSuchUpload":
                    raise
                raise DrengineError(OBJECT_DAMAGED, f"the upload of {key} is gone") from error
        try:
            found = self.head(key)
        except FileNotFoundError:
            found = -1
        if found != length:
            raise DrengineError(OBJECT_DAMAGED, f"{key} has {found} bytes in place of {length}")

    def abort_upload(self, key: str, upload: str) -> None:
        """See ObjectClient."""
        with suppress(FileNotFoundError), _errors(self._place, f"giving up the upload of {key}"):
            self._s3.abort_multipart_upload(UploadId=upload, **self._at(key))

    def clock_skew_seconds(self) -> float:
        """How far the object store's clock is ahead of this host's, to the second; 0 where it does not say."""
        with _errors(self._place, "asking for the time"):
            answer = self._s3.list_objects_v2(Bucket=self._place.bucket, Prefix=self._place.prefix, MaxKeys=1)
        said = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
        try:
            theirs = parsedate_to_datetime(said).replace(tzinfo=UTC)  # HTTP knows no other zone
        except (TypeError, ValueError):
            return 0.0
        return (theirs - datetime.now(UTC)).total_seconds()

    def object_lock(self) -> str:
        """What the bucket's object lock says, for people; a server or policy that does not tell is no error."""
        with _errors(self._place, "asking for the object lock"):
            try:
                answer = self._s3.get_object_lock_configuration(Bucket=self._place.bucket)
            except sdk.ClientError as error:
                code = _code(error)
                return "none: what is deleted is gone" if code == _NO_LOCK else f"not told: {code}"
        kept = answer["ObjectLockConfiguration"].get("Rule", {}).get("DefaultRetention")
        if not kept:
            return "on, without a default retention: what is deleted may be removed for good"
        span = f"{kept['Years']} years" if "Years" in kept else f"{kept.get('Days')} days"
        return f"{kept.get('Mode')}: what is stored is kept for {span}, also when it is deleted"

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._place.bucket, "Key": self._place.prefix + key}

    def _page(self, prefix: str, following: Mapping[str, str]) -> Mapping[str, Any]:
        with _errors(self._place, f"listing {prefix}"):
            found: Mapping[str, Any] = self._s3.list_objects_v2(Bucket=self._place.bucket, Prefix=prefix, **following)
            return found

    def _says(self, answer: Mapping[str, Any], digest: str) -> bool:
        """Whether an answer's tag is the digest of what was sent; of an object under a KMS key it never is.

        Raises:
            DrengineError: OBJECT_DAMAGED: it is the digest of something else.
        """
        tag = str(answer.get("ETag", "")).strip('"')
        if tag == digest:
            return True
        if "kms" in str(answer.get("ServerSideEncryption", "")) or "SSECustomerAlgorithm" in answer:
            return False
        if _MD5.fullmatch(tag):
            raise DrengineError(OBJECT_DAMAGED, "the object store holds other bytes than were sent")
        return False

    def _stored_digest(self, key: str, length: int) -> bytes:
        try:
            if self.head(key) != length:
                return b""
            return hashlib.md5(self.get(key, 0, length), usedforsecurity=False).digest()
        except FileNotFoundError:
            return b""


def _sdk_client(place: S3Place, options: S3Options) -> Any:
    core = botocore.session.Session(profile=options.profile or None)
    if options.credentials_file:
        core.set_config_variable("credentials_file", os.fspath(options.credentials_file))
    region = place.region or core.get_config_variable("region") or (_ANY_REGION if place.endpoint else None)
    config = botocore.config.Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=options.request_seconds,
        retries={"total_max_attempts": 1},
        max_pool_connections=2 * options.concurrency,
        tcp_keepalive=True,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        signature_version="s3v4",
        user_agent_appid="drengine",
        s3={"addressing_style": place.style, "use_arn_region": True},
    )
    core.register_component("data_loader", _loader(core.get_config_variable("data_path")))
    return core.create_client(
        "s3",
        region_name=region,
        endpoint_url=place.endpoint or None,
        verify=os.fspath(options.ca_file) if options.ca_file else None,
        config=config,
    )


@cache
def _loader(data_path: str | None) -> botocore.loaders.Loader:
    """What reads the SDK's descriptions of services; shared, for it keeps them, and to read them takes 0.2 s."""
    return botocore.loaders.create_loader(data_path)


@contextmanager
def _errors(place: S3Place, doing: str) -> Iterator[None]:
    """Turn what the SDK raises into our kinds, and what is not there into FileNotFoundError."""
    where = f"{doing} at {place.bucket}"
    try:
        yield
    except sdk.ClientError as error:
        code = _code(error)
        if code in _MISSING:
            raise FileNotFoundError(errno.ENOENT, "no such object", doing) from error
        raise DrengineError(_kind(error, code), f"{where}: {code}: {_message(error)}") from error
    except _NO_KEYS as error:
        raise NeverSent(OBJECT_STORE_KEYS, f"{where}: {error}") from error
    except _NO_PLACE as error:
        raise NeverSent(OBJECT_STORE_PLACE, f"{where}: {error}") from error
    except _NOT_SENT as error:
        raise NeverSent(OBJECT_STORE_AWAY, f"{where}: {error}") from error
    except (sdk.BotoCoreError, OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise DrengineError(OBJECT_STORE_AWAY, f"{where}: {error}") from error


def _code(error: sdk.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _message(error: sdk.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Message", ""))[:200]


def _kind(error: sdk.ClientError, code: str) -> ErrorKind:
    status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    if code == "InvalidRange":
        return OBJECT_DAMAGED
    return _KINDS.get(code) or _KINDS.get(status) or OBJECT_STORE_AWAY


def _add_md5(params: dict[str, Any], **_: Any) -> None:
    """For servers that want Content-MD5 where the SDK sends none."""
    body = params.get("body")
    if isinstance(body, bytes):
        params["headers"]["Content-MD5"] = _base64(hashlib.md5(body, usedforsecurity=False).digest())


def _body(data: Buffer) -> bytes | bytearray:
    return bytes(data) if isinstance(data, memoryview) else data


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
