"""Options of storages that keep objects, and what a store's acknowledgement stands for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drengine.config import COUNT, DURATION, PATH, RATE, SIZE, TEXT, choice, option

ACK_OBJECT = "object"
ACK_LOCAL = "local"
CONCURRENCY_MAX = 128
PART_BYTES_MIN = 5 << 20
"""S3 takes no smaller part of a multipart upload, but for the last."""


def _concurrency(count: int) -> None:
    if not 1 <= count <= CONCURRENCY_MAX:
        raise ValueError(f"1 to {CONCURRENCY_MAX} are possible")


def _part(size: int) -> None:
    if size < PART_BYTES_MIN:
        raise ValueError("parts of an upload have at least 5 MiB")


@dataclass(frozen=True)
class S3Options:
    """[s3]"""

    ack: str = option(
        choice(ACK_OBJECT, ACK_LOCAL),
        default=ACK_OBJECT,
        help="What an acknowledgement stands for (docs/operations.md). `object`: the data is in the object store. "
        "`local`: it is on this target's disk, and uploaded behind.",
    )
    cache: int = option(
        SIZE,
        default=10 << 30,
        help="How much of this host's disk copies of objects may take, beside what is not uploaded.",
    )
    concurrency: int = option(
        COUNT, default=8, help="Uploads under way at the same time at most, and as many downloads.", check=_concurrency
    )
    upload_rate: int = option(RATE, default=0, help="Bytes a second that are uploaded at most; 0: no limit.")
    download_rate: int = option(RATE, default=0, help="Bytes a second that are downloaded at most; 0: no limit.")
    part_size: int = option(
        SIZE, default=16 << 20, help="Files beyond this are uploaded in parts of this size.", check=_part
    )
    request_seconds: float = option(DURATION, default=20.0, help="How long one request may wait for bytes.")
    patience: float = option(
        DURATION,
        default=30.0,
        help="How long what fails in passing is tried again, with growing pauses, before it counts as failed.",
    )
    upload_interval: float = option(
        DURATION, default=1.0, help="With ack `local`: from one upload of a source's newest data to the next."
    )
    delete_delay: float = option(
        DURATION,
        default=3600.0,
        help="How long objects stay that nothing needs any more, for readers at other targets.",
    )
    profile: str = option(TEXT, default="", help="Profile in the SDK's files whose credentials are used.")
    credentials_file: Path | None = option(
        PATH, default=None, help="File with credentials in the SDK's form; absent: where the SDK looks by itself."
    )
    ca_file: Path | None = option(
        PATH, default=None, help="PEM file with the CAs that sign the endpoint's certificate; absent: the system's."
    )
