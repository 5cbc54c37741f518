"""What can go wrong with a store, as kinds with exit codes 30 to 49, and how the system's errors become them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from drengine.model.errors import DrengineError, ErrorKind, error_kind

NOT_A_STORE = error_kind(
    "not-a-store",
    30,
    "The directory is not a replica store.",
    "Check the path, and that its file system is mounted; `drengine target init --store DIR` makes a new store.",
)
STORE_VERSION = error_kind(
    "store-version",
    31,
    "The store was written by a newer version of drengine.",
    "Upgrade drengine on this host; nothing was changed.",
)
STORE_EXISTS = error_kind(
    "store-exists",
    32,
    "A new store needs an empty directory.",
    "Choose an empty directory, or open the store that is there.",
)
CATALOGUE_DAMAGED = error_kind(
    "catalogue-damaged",
    33,
    "The store's catalogue cannot be trusted.",
    "Stop the target, then run `drengine rebuild` on the store: it is made anew from the segments.",
)
STORE_IO = error_kind(
    "store-io",
    34,
    "The store's disk returned an I/O error; what was not acknowledged yet is sent again in a new session.",
    "Check the disk and the kernel's log. The target opens the branch anew and reads again what it wrote last.",
)
STORE_FULL = error_kind(
    "store-full",
    35,
    "The store's disk has no space; nothing was acknowledged.",
    "Free space or shorten retention; replication resumes by itself.",
    retryable=True,
)
STORE_READ_ONLY = error_kind(
    "store-read-only",
    36,
    "The store cannot be written: read-only file system or missing permission.",
    "Remount it read-write or correct the directory's owner; replication resumes by itself.",
)
INVENTORY_UNKNOWN = error_kind(
    "inventory-unknown",
    169,
    "The source's agent has never told what its server is made of.",
    "Its agent tells it soon after it has a session (`drengine status` shows whether it has); an older one has to be "
    "upgraded.",
)
TOO_MANY_SOURCES = error_kind(
    "too-many-sources",
    7,
    "The store knows as many sources as the target allows, and this one is new.",
    "Raise `sources_max` on the target, or use another target; sources that never replicated do not count.",
    retryable=True,
)
FENCED = error_kind(
    "fenced",
    37,
    "A newer generation exists: this writer must not write any more.",
    "The source was promoted elsewhere; fail back to it or enrol it anew.",
    final=True,
)
BRANCH_BUSY = error_kind(
    "branch-busy",
    38,
    "Another process or session is writing this branch.",
    "Wait until it ends, or stop it.",
    retryable=True,
)
SEQUENCE_GAP = error_kind(
    "sequence-gap",
    39,
    "A stream position is missing.",
    "The peer must resume at the durable position; if it repeats, report it.",
    retryable=True,
)
UNKNOWN_SOURCE = error_kind(
    "unknown-source", 40, "The store holds no such source.", "List the sources with `drengine status`.", final=True
)
UNKNOWN_POINT = error_kind(
    "unknown-point", 41, "There is no such recovery point.", "List the points with `drengine points`.", final=True
)
UNKNOWN_BRANCH = error_kind(
    "unknown-branch",
    42,
    "There is no such branch, or it is closed.",
    "List the branches with `drengine branches`.",
    final=True,
)
DAMAGED = error_kind(
    "damaged",
    43,
    "Stored data failed its checks and is refused.",
    "Choose another point (`drengine points`); run `drengine scrub` so that the source sends it again.",
)
UNKNOWN_VOLUME = error_kind(
    "unknown-volume",
    44,
    "The point has no such volume.",
    "See the point's volumes with `drengine points --json`.",
    final=True,
)
OUT_OF_RANGE = error_kind(
    "out-of-range", 45, "The range is outside the volume.", "Compare the volume's size with the request.", final=True
)
MAINTENANCE_BUSY = error_kind(
    "maintenance-busy",
    46,
    "Another process is maintaining this store.",
    "Wait until it ends.",
    retryable=True,
)
STORE_IDENTITY_DAMAGED = error_kind(
    "store-identity-damaged",
    47,
    "The store's identity file failed its checksum.",
    "Run `drengine rebuild` on the store.",
)
POINT_IN_USE = error_kind(
    "point-in-use", 48, "The point or branch is in use.", "Close what uses it, or unpin it, first."
)
STORE_AWAY = error_kind(
    "store-away",
    54,
    "The store that was opened is not at its path: moved, unmounted, or replaced. Nothing is written to what is there.",
    "Put it back or mount it: the target goes on by itself. To use what lies there now, restart the target.",
    retryable=True,
)
RESOURCES_EXHAUSTED = error_kind(
    "resources-exhausted",
    55,
    "The process or its host is out of file descriptors or memory; nothing was acknowledged.",
    "Raise the limit (`ulimit -n`, LimitNOFILE= in the unit), or serve fewer at once; it goes on by itself.",
    retryable=True,
)
UNKNOWN_TARGET = error_kind(
    "unknown-target",
    191,
    "No target of that name uses the store.",
    "`drengine targets` lists those that do, where several share one store.",
)
TARGET_LIVING = error_kind(
    "target-living",
    192,
    "The target is there: it can't be forgotten.",
    "Stop it first; before that, `drengine target drain NAME` gives its sources away without a gap.",
)
TARGET_NAME_TAKEN = error_kind(
    "target-name-taken",
    173,
    "Another target of this store has this name, and is there.",
    "Give each target a name of its own by the option `name`: machines that were cloned are called alike.",
)
STORAGE_UNAVAILABLE = error_kind(
    "storage-unavailable",
    58,
    "The storage that the STORE file names is not installed here, or can't be opened.",
    "Install the package that brings it, in the environment that runs drengine; see docs/format.md, STORE.",
)
BAD_LOCK = error_kind(
    "bad-lock",
    228,
    "The retention lock cannot be understood.",
    'Write "7d" for every point, or "every 1h for 7d" for one an hour; units s, m, h, d, w, up to 100 years.',
)
POINT_LOCKED = error_kind(
    "point-locked",
    229,
    "Points are under a retention lock: nobody can remove them before their time.",
    "See for how long with `drengine points`; a lock can be made longer, never shorter.",
    final=True,
)
STORE_IS_COPY = error_kind(
    "store-is-copy",
    253,
    "The store is a copy that a mirror keeps; only the mirror changes it.",
    "Do it at the original. If that is lost: a failover makes the copy a store of its own, and so does "
    "`drengine mirror --detach COPY`.",
    final=True,
)
MIRROR_PARTED = error_kind(
    "mirror-parted",
    249,
    "What was a copy has become a store of its own, by a promotion or by hand: it is never written over.",
    "If it is not needed any more, mirror into an empty directory. Else it is the store now, and the original is not.",
    final=True,
)
NOT_ITS_COPY = error_kind(
    "not-its-copy",
    250,
    "The destination holds something else than an earlier state of this store.",
    "Choose an empty directory, one that the mirror made, or one with a copy of the store's directory.",
    final=True,
)
MIRROR_BUSY = error_kind(
    "mirror-busy", 251, "Another process mirrors to this place.", "Wait until it ends, or stop it.", retryable=True
)
ORIGIN_REBUILT = error_kind(
    "origin-rebuilt",
    252,
    "The original's catalogue was rebuilt and lacks what the copy has: nobody decided to remove that.",
    "Look at both with `drengine points`. To go by the original, mirror with --accept-rebuilt; to go by the copy, "
    "fail over to it.",
    final=True,
)

CATALOGUE_UNAVAILABLE = error_kind(
    "catalogue-unavailable",
    242,
    "The database of the store's catalogue does not answer, or the connection to it broke; nothing was acknowledged.",
    "See whether PostgreSQL runs and is reached from this host (`psql URL`); replication resumes by itself.",
    retryable=True,
)
CATALOGUE_REFUSED = error_kind(
    "catalogue-refused",
    243,
    "PostgreSQL does not let this user in, or has no such database.",
    "Check user and database of the catalogue's URL, pg_hba.conf, and the password: ~/.pgpass of the user that runs "
    "drengine, or PGPASSWORD or PGPASSFILE in its environment.",
)
CATALOGUE_UNSUITABLE = error_kind(
    "catalogue-unsuitable",
    244,
    "This PostgreSQL cannot hold a catalogue: too old, another encoding than UTF8, or commits that are not durable.",
    "See docs/operations.md, A store that targets share, for what it must be.",
)
CATALOGUE_FOREIGN = error_kind(
    "catalogue-foreign",
    245,
    "The database holds the catalogue of another store, or none where one is expected.",
    "Check the catalogue's URL in the STORE file. One database holds one store: make another one with `createdb`, or "
    "join the store that is there with `drengine store join DIRECTORY --catalogue URL`.",
)
CATALOGUE_URL = error_kind(
    "catalogue-url",
    246,
    "The URL of the catalogue cannot be used.",
    "It is postgresql://USER@HOST/DATABASE, without a password: that belongs in ~/.pgpass, PGPASSWORD or PGPASSFILE.",
)
LOCK_LOST = error_kind(
    "lock-lost",
    247,
    "The lock under which this was written is somebody else's now, or could not be renewed in time.",
    "Another target has taken over, or the catalogue could not be reached; the agent finds who holds its source.",
    retryable=True,
)

NOT_UPLOADED = error_kind(
    "not-uploaded",
    199,
    "Only the host that received this data has it: it has not uploaded it yet (ack `local`).",
    "Wait until it has, choose an older point (`drengine points`), or open it at that host.",
    retryable=True,
)
STORAGE_MISMATCH = error_kind(
    "storage-mismatch",
    209,
    "The configuration speaks of an object store, and this store keeps its data elsewhere.",
    "Remove [s3] from the configuration, or name the directory of the store whose data is in the object store. "
    "Nothing was changed.",
)

_BY_ERRNO: dict[int, ErrorKind] = {
    errno.ENOSPC: STORE_FULL,
    errno.EDQUOT: STORE_FULL,
    errno.EFBIG: STORE_FULL,
    errno.EROFS: STORE_READ_ONLY,
    errno.EACCES: STORE_READ_ONLY,
    errno.EPERM: STORE_READ_ONLY,
    errno.ENOENT: STORE_AWAY,
    errno.ENOTDIR: STORE_AWAY,
    errno.ESTALE: STORE_AWAY,
    errno.ENOTCONN: STORE_AWAY,
    errno.EMFILE: RESOURCES_EXHAUSTED,
    errno.ENFILE: RESOURCES_EXHAUSTED,
    errno.ENOMEM: RESOURCES_EXHAUSTED,
}


def from_os_error(error: OSError, doing: str) -> DrengineError:
    """The store's error for one of the system's; whatever is not known to be harmless is STORE_IO."""
    kind = _BY_ERRNO.get(error.errno or 0, STORE_IO)
    return DrengineError(kind, f"{doing}: {error.strerror or error}")


@contextmanager
def os_errors(doing: str) -> Iterator[None]:
    """Turn OSError inside the block into a DrengineError naming what was being done."""
    try:
        yield
    except OSError as error:
        raise from_os_error(error, doing) from error


@contextmanager
def read_errors(name: str) -> Iterator[None]:
    """For reading stored data: bytes that the disk cannot give are damaged, like bytes that fail their checksum.

    FileNotFoundError goes through as it is: compaction may have replaced the file.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.EIO, errno.ELOOP, errno.ENOTDIR, errno.EISDIR):
            raise DrengineError(DAMAGED, f"{name} cannot be read: {error.strerror}") from error
        raise from_os_error(error, f"reading {name}") from error
