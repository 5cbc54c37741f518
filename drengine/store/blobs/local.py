"""Files in a local directory. Names can't leave it: no '..', no absolute paths, no symbolic links on the way."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from pathlib import Path

from drengine.store.blobs.storage import Abilities, Buffer

UNFINISHED = ".tmp"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class LocalAppender:
    """A file that grows. See Appender."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def append(self, data: Buffer) -> None:
        """See Appender."""
        view = memoryview(data).cast("B")
        while view:
            view = view[os.write(self._descriptor, view) :]

    def sync(self) -> None:
        """See Appender."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """See Appender."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


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

    def size(self) -> int:
        """See Reader."""
        return os.fstat(self._descriptor).st_size

    def map(self) -> mmap.mmap | bytes:
        """See Reader."""
        size = self.size()
        return mmap.mmap(self._descriptor, size, prot=mmap.PROT_READ) if size else b""

    def close(self) -> None:
        """See Reader."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class LocalStorage:
    """A directory. See Storage."""

    abilities = Abilities(append=True)

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self, name: str) -> LocalAppender:
        """See Storage. Missing folders are made, and made durable."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return LocalAppender(self._open(name, flags, make_folders=True))

    def open(self, name: str) -> LocalReader:
        """See Storage."""
        return LocalReader(self._open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))

    def put(self, name: str, data: Buffer) -> None:
        """See Storage: written aside, synced, renamed, and the folder synced."""
        folder, leaf = self._folder(name, make=True)
        try:
            aside = leaf + UNFINISHED
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            appender = LocalAppender(os.open(aside, flags, 0o600, dir_fd=folder))
            try:
                appender.append(data)
                appender.sync()
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(aside, dir_fd=folder)
                raise
            finally:
                appender.close()
            os.rename(aside, leaf, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
        finally:
            os.close(folder)

    def list(self, prefix: str) -> list[str]:
        """See Storage."""
        _parts(prefix)
        found: list[str] = []
        for folder, folders, files in os.walk(self.root / prefix, onerror=_raise_unless_missing):
            folders.sort()
            relative = Path(folder).relative_to(self.root)
            found += [str(relative / name) for name in files if not name.endswith(UNFINISHED)]
        return sorted(found)

    def delete(self, name: str) -> None:
        """See Storage."""
        try:
            folder, leaf = self._folder(name)
        except FileNotFoundError:
            return
        try:
            os.unlink(leaf, dir_fd=folder)
            os.fsync(folder)
        except FileNotFoundError:
            pass
        finally:
            os.close(folder)

    def sync_dir(self, prefix: str) -> None:
        """See Storage."""
        folder, _ = self._folder(f"{prefix}/.")
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def free_bytes(self) -> int | None:
        """See Storage: what an ordinary user may still write."""
        state = os.statvfs(self.root)
        return state.f_bavail * state.f_frsize

    def _open(self, name: str, flags: int, *, make_folders: bool = False) -> int:
        folder, leaf = self._folder(name, make=make_folders)
        try:
            return os.open(leaf, flags, 0o600, dir_fd=folder)
        finally:
            os.close(folder)

    def _folder(self, name: str, *, make: bool = False) -> tuple[int, str]:
        """Descriptor of the folder that holds `name`, reached without following a link, and the last part."""
        *folders, leaf = _parts(name, dot_last=True)
        here = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in folders:
                if make:
                    try:
                        os.mkdir(part, 0o700, dir_fd=here)
                        os.fsync(here)
                    except FileExistsError:
                        pass
                below = os.open(part, _DIRECTORY, dir_fd=here)
                os.close(here)
                here = below
        except BaseException:
            os.close(here)
            raise
        return here, leaf


def _parts(name: str, *, dot_last: bool = False) -> list[str]:
    parts = name.split("/")
    checked = parts[:-1] if dot_last and parts[-1] == "." else parts
    if any(part in ("", ".", "..") or "\0" in part for part in checked):
        raise OSError(errno.EINVAL, f"{name[:80]!r} is no name inside a store")
    return parts


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
