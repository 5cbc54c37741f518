"""Where a store's objects are, as a URL without secrets: ``s3://BUCKET/PREFIX?endpoint=URL&region=NAME&style=path``.

In place of the bucket may stand the ARN of an access point, also of one on an Outpost.
"""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass

from drengine.model.errors import DrengineError
from drengine.store.blobs.s3.errors import OBJECT_STORE_PLACE

SCHEME = "s3://"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
_ARN = re.compile(
    r"arn:[a-z-]+:(?:s3:[a-z0-9-]*:\d*:accesspoint[:/][a-z0-9-]+"
    r"|s3-outposts:[a-z0-9-]+:\d{12}:outpost[:/]op-[a-z0-9]+[:/]accesspoint[:/][a-z0-9-]+)",
    re.ASCII,
)
_PREFIX = re.compile(r"(?:[A-Za-z0-9!_.*'()-]+/)*", re.ASCII)
_REGION = re.compile(r"[a-z0-9-]{2,32}", re.ASCII)
_STYLES = ("auto", "path", "virtual")
PREFIX_LENGTH_MAX = 256


@dataclass(frozen=True, slots=True)
class S3Place:
    """A place for one store.

    Attributes:
        bucket: a bucket's name, or an access point's ARN.
        prefix: what all keys begin with: empty, or ending with '/'.
        endpoint: URL of the service; empty: AWS's own for the region.
        region: that signatures name; empty: what the SDK finds.
        style: how the bucket is named in requests, ``path`` or ``virtual``; ``auto``: as the SDK thinks right.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = ""
    style: str = "auto"

    @classmethod
    def parse(cls, text: str) -> S3Place:
        """A place as it is written.

        Raises:
            DrengineError: OBJECT_STORE_PLACE; a place that holds secrets is refused without repeating them.
        """
        if not text.startswith(SCHEME):
            raise _wrong("a place in an object store begins with s3://")
        path, _, query = text.removeprefix(SCHEME).partition("?")
        if "@" in path:
            raise _wrong("a place names no user and no password: credentials come from [s3], AWS_* or the role")
        arn = _ARN.match(path)
        bucket = arn[0] if arn else path.partition("/")[0]
        if not arn and not _BUCKET.fullmatch(bucket):
            raise _wrong(f"{bucket[:80]!r} is neither a bucket's name nor an access point's ARN")
        rest = path[len(bucket) :]
        if rest and not rest.startswith("/"):
            raise _wrong(f"{path[:120]!r}: a '/' stands between bucket and prefix")
        prefix = rest.strip("/")
        prefix = f"{prefix}/" if prefix else ""
        if not _PREFIX.fullmatch(prefix) or len(prefix) > PREFIX_LENGTH_MAX or ".." in prefix:
            raise _wrong(f"{prefix[:80]!r} is no prefix: letters, digits, and any of !_.*'()- between slashes")
        return cls(bucket, prefix, **_settings(query))

    def __str__(self) -> str:
        settings = {"endpoint": self.endpoint, "region": self.region, "style": self.style}
        given = {name: value for name, value in settings.items() if value not in ("", "auto")}
        query = f"?{urllib.parse.urlencode(given, safe=':/')}" if given else ""
        return f"{SCHEME}{self.bucket}/{self.prefix.rstrip('/')}".rstrip("/") + query


def _settings(query: str) -> dict[str, str]:
    try:
        pairs = urllib.parse.parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=8)
    except ValueError:
        raise _wrong("what follows the '?' is not written as name=value&name=value") from None
    settings: dict[str, str] = {}
    for name, value in pairs:
        if name not in ("endpoint", "region", "style") or name in settings:
            raise _wrong(f"a place knows endpoint, region and style, each once; not {name[:40]!r}")
        settings[name] = value
    endpoint = urllib.parse.urlsplit(settings.get("endpoint", "https://none"))
    if endpoint.scheme not in ("http", "https") or not endpoint.hostname or endpoint.query or "@" in endpoint.netloc:
        raise _wrong("endpoint= needs http:// or https://, a host, and no user")
    if settings.get("region") and not _REGION.fullmatch(settings["region"]):
        raise _wrong(f"{settings['region'][:40]!r} is no region")
    if settings.get("style", "auto") not in _STYLES:
        raise _wrong(f"style= is one of {', '.join(_STYLES)}")
    return settings


def _wrong(message: str) -> DrengineError:
    return DrengineError(OBJECT_STORE_PLACE, message)
