"""What can go wrong between a store and its objects, as kinds with exit codes 230 to 239."""

from __future__ import annotations

from drengine.model.errors import DrengineError, error_kind

OBJECT_STORE_AWAY = error_kind(
    "object-store-away",
    230,
    "The object store does not answer, or answers that it failed; nothing was acknowledged.",
    "Check the network, the endpoint and the object store's own state; replication resumes by itself. "
    "`drengine store check` tries each operation.",
    retryable=True,
)
OBJECT_STORE_BUSY = error_kind(
    "object-store-busy",
    231,
    "The object store asks for fewer requests.",
    "It goes on by itself. If it stays so, lower `concurrency` in [s3], or ask for more throughput.",
    retryable=True,
)
OBJECT_STORE_KEYS = error_kind(
    "object-store-keys",
    232,
    "The object store does not accept these credentials: wrong, expired, or none were found.",
    "See `profile` and `credentials_file` in [s3], the AWS_* variables, and the instance's role; replication resumes "
    "when there are valid ones.",
)
OBJECT_STORE_DENIED = error_kind(
    "object-store-denied",
    233,
    "The object store knows these credentials, and does not permit the operation.",
    "docs/security.md lists what the policy must permit; `drengine store check` shows which operation is refused.",
)
OBJECT_STORE_REGION = error_kind(
    "object-store-region",
    234,
    "The bucket is in another region than the requests were signed for.",
    "Correct the region: `drengine store place --store DIR PLACE`, or the bucket that it names.",
)
OBJECT_STORE_PLACE = error_kind(
    "object-store-place",
    235,
    "There is no such bucket or access point, or the storage's place is not written as one.",
    "It is s3://BUCKET/PREFIX?endpoint=URL&region=NAME&style=path, or an access point's ARN in place of the bucket.",
)
OBJECT_STORE_CLOCK = error_kind(
    "object-store-clock",
    236,
    "This host's clock is too far from the object store's, which refuses its signatures.",
    "Set the clock (chrony or systemd-timesyncd); replication resumes by itself.",
    retryable=True,
)
OBJECT_DAMAGED = error_kind(
    "object-damaged",
    237,
    "The object store did not keep what was sent to it, or gave something else back.",
    "If it repeats, something between here and the object store changes bytes; nothing of it was committed.",
    retryable=True,
)
OBJECT_MISSING = error_kind(
    "object-missing",
    238,
    "Objects are not there that the catalogue names.",
    "Do not delete anything. If versions or a copy of the bucket exist, put the objects back; `drengine scrub` finds "
    "which points need them, and the source sends what is missing again.",
)
OBJECT_STORE_TAKEN = error_kind(
    "object-store-taken",
    239,
    "The bucket and prefix hold another store, two stores, or something that is no store.",
    "Give each store a prefix of its own. Nothing was changed there.",
)


class NeverSent(DrengineError):
    """A request that did not reach the object store: what it asked for was certainly not done."""
