"""Files in a local directory. Names can't leave it: no '..', no absolute paths, no symbolic links on the way."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from drengine.durable import open_aside, remove_aside
from drengine.linux import writeback
from drengine.ownership import give_to_owner
from drengine.store.blobs.index import NO_CHANGES, Changes
from drengine.store.blobs.storage import Abilities, Buffer, name_parts

UNFINISHED = ".tmp"
_PARTS_MAX = 512
_WRITEBACK_BYTES = 4 << 20
"""Bulk data is written out from here on while more of it comes, so that a sync has little left to wait for."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC


class LocalAppender:
    """A file that grows. See Appender."""

    def __init__(self, descriptor: int, length: int = 0) -> None:
        self._descriptor = descriptor
        self._length = self._begun = length

    def append(self, *parts: Buffer) -> None:
        """See Appender."""
        views = [view for part in parts if (view := memoryview(part).cast("B"))]
        while views:
            done = os.writev(self._descriptor, views[:_PARTS_MAX])
            if not done:
                raise OSError(errno.EIO, "the file system wrote nothing")
            while views and done >= len(views[0]):
                done -= len(views.pop(0))
            if done:
                views[0] = views[0][done:]
        self._length += sum(map(len, parts))
        if self._length - self._begun >= _WRITEBACK_BYTES:
            writeback.begin(self._descriptor, self._begun, self._length - self._begun)
            self._begun = self._length

    def lock(self) -> None:
        """Hold the file's lock for as long as it is open, so that others can tell that it is being written."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def sync(self) -> Changes:
        """See Appender."""
        os.fdatasync(self._descriptor)
        return NO_CHANGES

    def close(self) -> None:
        """See Appender."""
        self._descriptor = _closed(self._descriptor)


class LocalReader:
    """A file being read. See Reader."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read_at(self, offset: int, length: int) -> bytes:
        """See Reader."""
        data = os.pread(self._descriptor, length, offset)
        while 0 < len(data) < length:
            more = os.pread(self._descriptor, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def read_now(self, offset: int, length: int) -> Buffer | None:
        """See Reader: what the page cache has, where the file system can tell."""
        buffer = bytearray(length)
        try:
            done = os.preadv(self._descriptor, [buffer], offset, os.RWF_NOWAIT)
        except OSError:
            return None
        return buffer if done == length else None

    def size(self) -> int:
        """See Reader."""
        return os.fstat(self._descriptor).st_size

    def map(self) -> mmap.mmap | bytes:
        """See Reader."""
        size = self.size()
        return mmap.mmap(self._descriptor, size, prot=mmap.PROT_READ) if size else b""

    def close(self) -> None:
        """See Reader."""
        self._descriptor = _closed(self._descriptor)


class LocalStorage:
    """A directory. See Storage."""

    abilities = Abilities(append=True)

    def __init__(self, root: Path, _place: str = "") -> None:
        """`root` is all that it needs to find its files."""
        self.root = root
        self._first_seen: os.stat_result | None = None

    def create(self, name: str) -> LocalAppender:
        """See Storage. Missing folders are made; `sync_dir` makes them durable."""
        with self._folders(name, make=True) as (chain, leaf):
            flags = _FILE | os.O_WRONLY | os.O_CREAT | os.O_EXCL
            appender = LocalAppender(descriptor := os.open(leaf, flags, 0o600, dir_fd=chain[-1]))
            try:
                give_to_owner(descriptor, chain[-1])
            except BaseException:
                appender.close()
                raise
            return appender

    def resume(self, name: str, length: int) -> LocalAppender:
        """See Storage."""
        with self._folders(name) as (chain, leaf):
            descriptor = os.open(leaf, _FILE | os.O_WRONLY | os.O_APPEND, dir_fd=chain[-1])
        try:
            _cut(descriptor, length, name)
        except BaseException:
            os.close(descriptor)
            raise
        return LocalAppender(descriptor, length)

    def open(self, name: str) -> LocalReader:
        """See Storage."""
        with self._folders(name) as (chain, leaf):
            return LocalReader(os.open(leaf, _FILE | os.O_RDONLY, dir_fd=chain[-1]))

    def put(self, name: str, data: Buffer) -> None:
        """See Storage: written aside, synced, renamed, and its folders synced."""
        with self._folders(name, make=True) as (chain, leaf):
            aside = leaf + UNFINISHED
            appender = LocalAppender(open_aside(aside, chain[-1], 0o600))
            try:
                appender.append(data)
                appender.sync()
                os.rename(aside, leaf, src_dir_fd=chain[-1], dst_dir_fd=chain[-1])
            except BaseException:
                with suppress(OSError):
                    os.unlink(aside, dir_fd=chain[-1])
                raise
            finally:
                appender.close()
            _sync(chain)

    def list(self, prefix: str) -> list[str]:
        """See Storage."""
        names = (name for name in self._walk(prefix) if not name.endswith(UNFINISHED))
        return sorted(names)

    def delete(self, name: str) -> None:
        """See Storage."""
        with suppress(FileNotFoundError), self._folders(name) as (chain, leaf):
            with suppress(FileNotFoundError):
                os.unlink(leaf, dir_fd=chain[-1])
            # Also when it was gone: an earlier attempt may have died between the two.
            os.fsync(chain[-1])

    def sync_dir(self, prefix: str) -> None:
        """See Storage."""
        with self._folders(f"{prefix}/any") as (chain, _):
            _sync(chain)

    def make_folders(self, name: str) -> None:
        """Make the folders above a name, so that a file can be renamed to it."""
        with self._folders(name, make=True):
            pass

    def available_length(self, name: str) -> int:
        """See Storage."""
        try:
            reader = self.open(name)
        except FileNotFoundError:
            return 0
        try:
            return reader.size()
        finally:
            reader.close()

    def close(self) -> None:
        """See Storage."""

    def sweep(self) -> int:
        """See Storage. A `put` under way holds a lock on its file, so only those of the dead go."""
        count = 0
        for name in [name for name in self._walk("") if name.endswith(UNFINISHED)]:
            with suppress(FileNotFoundError, BlockingIOError), self._folders(name) as (chain, leaf):
                count += remove_aside(leaf, chain[-1])
        return count

    def free_bytes(self) -> int | None:
        """See Storage: what an ordinary user may still write."""
        state = os.statvfs(self.root)
        return state.f_bavail * state.f_frsize

    def _walk(self, prefix: str) -> Iterator[str]:
        """Files whose name begins with `prefix`; only the folder that its last '/' names is walked."""
        above = prefix.rpartition("/")[0]
        if above:
            name_parts(above)
        # The folder `above` must be reached without a link; os.walk itself does not follow any below it.
        with (
            suppress(FileNotFoundError, NotADirectoryError),
            self._folders(f"{above}/any" if above else "any"),
        ):
            for folder, folders, files in os.walk(self.root / above, onerror=_raise_unless_missing):
                relative = str(Path(folder).relative_to(self.root))
                begin = "" if relative == "." else f"{relative}/"
                folders[:] = [part for part in folders if _may_hold(f"{begin}{part}/", prefix)]
                yield from (name for part in files if (name := f"{begin}{part}").startswith(prefix))

    @contextmanager
    def _folders(self, name: str, *, make: bool = False) -> Iterator[tuple[Sequence[int], str]]:
        """Descriptors of all folders from the root to the one that holds `name`, and the last part of `name`."""
        *folders, leaf = name_parts(name)
        chain = [self._open_root()]
        try:
            for part in folders:
                made = make and _make_folder(part, chain[-1])
                chain.append(os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=chain[-1]))
                if made:
                    give_to_owner(chain[-1], chain[-2])
            yield chain, leaf
        finally:
            for descriptor in chain:
                os.close(descriptor)

    def _open_root(self) -> int:
        """The root, and none that took its place: its files are not ours. That a file is missing says nothing then."""
        try:
            descriptor = os.open(self.root, _FOLDER)
        except FileNotFoundError as error:
            raise OSError(errno.ESTALE, f"{self.root} is not there") from error
        found = os.fstat(descriptor)
        if self._first_seen is None:
            self._first_seen = found
        if not os.path.samestat(found, self._first_seen):
            os.close(descriptor)
            raise OSError(errno.ESTALE, f"{self.root} is another directory than before")
        return descriptor


def _cut(descriptor: int, length: int, name: str) -> None:
    """Take what lies behind `length` from a file."""
    if os.fstat(descriptor).st_size < length:
        raise OSError(errno.EINVAL, f"{name} is shorter than {length} bytes")
    os.ftruncate(descriptor, length)


def _make_folder(name: str, folder: int) -> bool:
    """Whether it was made now."""
    try:
        os.mkdir(name, 0o700, dir_fd=folder)
    except FileExistsError:
        return False
    return True


def _sync(chain: Sequence[int]) -> None:
    """Deepest folder first. All of them, always: the process that made one may have died before it was durable."""
    for descriptor in reversed(chain):
        os.fsync(descriptor)


def _closed(descriptor: int) -> int:
    if descriptor >= 0:
        os.close(descriptor)
    return -1


def _may_hold(folder: str, prefix: str) -> bool:
    return folder.startswith(prefix) or prefix.startswith(folder)


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
