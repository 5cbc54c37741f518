"""Records what a process does to files, by strace, as operations on inodes and names.

Everything under one directory is recorded: SQLite's files, locks, segments. SQLite's `-shm` file is mapped
memory that is rebuilt after a crash; it is left out.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

CALLS = (
    "open,openat,creat,close,dup,dup2,dup3,fcntl,lseek,write,pwrite64,writev,pwritev,pwritev2,truncate,ftruncate,"
    "fallocate,fsync,fdatasync,sync_file_range,rename,renameat,renameat2,unlink,unlinkat,link,linkat,symlink,symlinkat,"
    "mkdir,mkdirat,rmdir,copy_file_range,sendfile,msync"
)
UNSUPPORTED = {
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "copy_file_range",
    "sendfile",
    "truncate",
    "creat",
    "msync",
}
SECONDS_MAX = 300


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes put into a file."""

    inode: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Resize:
    """A file's new size."""

    inode: int
    size: int


@dataclass(frozen=True, slots=True)
class Names:
    """Names that change together: a creation, removal or rename. None: the name goes."""

    changes: tuple[tuple[int, str, int | None], ...]
    """(folder's inode, name, inode)."""


@dataclass(frozen=True, slots=True)
class Sync:
    """fsync or fdatasync of a file, or of a folder."""

    inode: int


@dataclass(frozen=True, slots=True)
class Said:
    """What the process wrote to its standard output."""

    text: bytes


Operation = Data | Resize | Names | Sync | Said


class Recording(NamedTuple):
    """Operations in order. Inode 0 is the recorded directory; `folders` are the inodes of folders."""

    operations: list[Operation]
    folders: frozenset[int]


def strace_missing() -> str | None:
    """Why nothing can be recorded here, or None."""
    path = shutil.which("strace")
    if path is None:
        return "strace is not installed"
    probe = subprocess.run([path, "-o", "/dev/null", "true"], capture_output=True, check=False)
    return None if probe.returncode == 0 else f"strace may not trace: {probe.stderr.decode()[:200].strip()}"


def record(arguments: list[str], directory: Path, trace: Path) -> Recording:
    """Run a Python module (`-m` arguments) and record what it does below `directory`."""
    command = ["strace", "-f", "-qq", "-xx", "-s", "16777216", "-e", f"trace={CALLS}", "-e", "signal=none"]
    command += ["-o", str(trace), sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, timeout=SECONDS_MAX, check=False)
    if done.returncode:
        raise RuntimeError(f"the recorded process failed:\n{done.stderr.decode()[-3000:]}")
    parser = _Parser(directory)
    with trace.open("rb") as lines:
        for line in _whole_lines(lines):
            parser.feed(line)
    return Recording(parser.operations, frozenset(parser.folders))


_UNFINISHED = b" <unfinished ...>"
_RESUMED = re.compile(rb"<\.\.\. \w+ resumed>")
_CALL = re.compile(rb"(\d+)\s+(\w+)\((.*)\)\s+= (-?\d+|\?)", re.DOTALL)
_TEXT = re.compile(rb'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


def _whole_lines(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Calls of threads that were interrupted by others, joined where they ended."""
    begun: dict[bytes, bytes] = {}
    for raw in lines:
        line = raw.rstrip(b"\n")
        process = line.split(b" ", 1)[0]
        if line.endswith(_UNFINISHED):
            begun[process] = line[: -len(_UNFINISHED)]
        elif resumed := _RESUMED.search(line[:100]):
            yield begun.pop(process) + line[resumed.end() :]
        else:
            yield line


@dataclass(slots=True)
class _OpenFile:
    """An open file description. `inode` is None for what is not recorded."""

    inode: int | None
    path: str
    offset: int = 0
    append: bool = False


class _Parser:
    def __init__(self, directory: Path) -> None:
        self.operations: list[Operation] = []
        self.folders = {0}
        self._root = str(directory)
        self._names: dict[str, int] = {"": 0}
        self._sizes: dict[int, int] = {}
        self._next = 1
        self._files: dict[int, _OpenFile] = {1: _OpenFile(-1, "stdout")}

    def feed(self, line: bytes) -> None:
        match = _CALL.match(line)
        if not match or match[4] == b"?" or int(match[4]) < 0:
            return
        texts: list[bytes] = []

        def take(text: re.Match[bytes]) -> bytes:
            if text[2]:
                raise RuntimeError("strace cut a string short")
            texts.append(bytes.fromhex(text[1].decode().replace("\\x", "")))
            return b"@"

        call, result = match[2].decode(), int(match[4])
        arguments = [part.strip() for part in _TEXT.sub(take, match[3]).decode().split(",")]
        handler = getattr(self, f"_{call}", None)
        if handler:
            handler(arguments, texts, result)
        elif call in UNSUPPORTED and any(self._inside(text.decode(errors="replace")) for text in texts):
            raise RuntimeError(f"the recording does not understand {call}")

    def _inside(self, path: str) -> bool:
        return path == self._root or path.startswith(self._root + "/")

    def _path(self, folder: str, name: bytes) -> str | None:
        """A path relative to the recorded directory, or None outside of it."""
        path = name.decode()
        if not path.startswith("/"):
            if folder == "AT_FDCWD":
                return None
            base = self._files.get(int(folder))
            if base is None or base.inode is None or base.inode < 0:
                return None
            path = f"{self._root}/{base.path}/{path}"
        parts = [part for part in path.split("/") if part not in ("", ".")]
        path = "/" + "/".join(parts)
        return path[len(self._root) + 1 :] if self._inside(path) else None

    def _ignored(self, path: str) -> bool:
        return path.endswith("-shm")

    def _name(self, path: str, inode: int | None) -> tuple[int, str, int | None]:
        folder, _, leaf = path.rpartition("/")
        return self._names[folder], leaf, inode

    def _make(self, path: str, *, folder: bool = False) -> int:
        inode, self._next = self._next, self._next + 1
        self._names[path] = inode
        self._sizes[inode] = 0
        if folder:
            self.folders.add(inode)
        self.operations.append(Names((self._name(path, inode),)))
        return inode

    def _resize(self, inode: int, size: int) -> None:
        self._sizes[inode] = size
        self.operations.append(Resize(inode, size))

    def _open(self, arguments: list[str], texts: list[bytes], result: int) -> None:
        self._openat(["AT_FDCWD", *arguments], texts, result)

    def _openat(self, arguments: list[str], texts: list[bytes], result: int) -> None:
        path, flags = self._path(arguments[0], texts[0]), arguments[2].split("|")
        if path is None or self._ignored(path):
            self._files[result] = _OpenFile(None, "")
            return
        inode = self._names.get(path)
        if inode is None:
            if "O_CREAT" not in flags:
                raise RuntimeError(f"{path} was opened but never made")
            inode = self._make(path)
        elif "O_TRUNC" in flags and self._sizes[inode]:
            self._resize(inode, 0)
        self._files[result] = _OpenFile(inode, path, append="O_APPEND" in flags)

    def _close(self, arguments: list[str], _texts: list[bytes], _result: int) -> None:
        self._files.pop(int(arguments[0]), None)

    def _dup(self, arguments: list[str], _texts: list[bytes], result: int) -> None:
        self._files[result] = self._files.get(int(arguments[0]), _OpenFile(None, ""))

    _dup2 = _dup3 = _dup

    def _fcntl(self, arguments: list[str], texts: list[bytes], result: int) -> None:
        if arguments[1].startswith("F_DUPFD"):
            self._dup(arguments, texts, result)

    def _lseek(self, arguments: list[str], _texts: list[bytes], result: int) -> None:
        if file := self._files.get(int(arguments[0])):
            file.offset = result

    def _write(self, arguments: list[str], texts: list[bytes], result: int) -> None:
        file = self._files.get(int(arguments[0]))
        if file is None or file.inode is None:
            return
        data = b"".join(texts)[:result]
        if file.inode < 0:
            self.operations.append(Said(data))
            return
        offset = self._sizes[file.inode] if file.append else file.offset
        file.offset = offset + len(data)
        self._data(file.inode, offset, data)

    _writev = _write

    def _pwrite64(self, arguments: list[str], texts: list[bytes], result: int) -> None:
        file = self._files.get(int(arguments[0]))
        if file and file.inode is not None:
            self._data(file.inode, int(arguments[-1]), b"".join(texts)[:result])

    def _data(self, inode: int, offset: int, data: bytes) -> None:
        self._sizes[inode] = max(self._sizes[inode], offset + len(data))
        self.operations.append(Data(inode, offset, data))

    def _ftruncate(self, arguments: list[str], _texts: list[bytes], _result: int) -> None:
        file = self._files.get(int(arguments[0]))
        if file and file.inode is not None:
            self._resize(file.inode, int(arguments[1]))

    def _fallocate(self, arguments: list[str], _texts: list[bytes], _result: int) -> None:
        file = self._files.get(int(arguments[0]))
        if file and file.inode is not None and arguments[1] == "0":
            self._resize(file.inode, max(self._sizes[file.inode], int(arguments[2]) + int(arguments[3])))

    def _fsync(self, arguments: list[str], _texts: list[bytes], _result: int) -> None:
        file = self._files.get(int(arguments[0]))
        if file and file.inode is not None and file.inode >= 0:
            self.operations.append(Sync(file.inode))

    _fdatasync = _fsync

    def _rename(self, _arguments: list[str], texts: list[bytes], _result: int) -> None:
        self._move(self._path("AT_FDCWD", texts[0]), self._path("AT_FDCWD", texts[1]))

    def _renameat(self, arguments: list[str], texts: list[bytes], _result: int) -> None:
        self._move(self._path(arguments[0], texts[0]), self._path(arguments[2], texts[1]))

    _renameat2 = _renameat

    def _move(self, old: str | None, new: str | None) -> None:
        if old is None and new is None:
            return
        if old is None or new is None or self._names[old] in self.folders:
            raise RuntimeError(f"a rename from {old} to {new} is not understood")
        inode = self._names.pop(old)
        self._names[new] = inode
        self.operations.append(Names((self._name(old, None), self._name(new, inode))))

    def _unlink(self, _arguments: list[str], texts: list[bytes], _result: int) -> None:
        self._drop(self._path("AT_FDCWD", texts[0]))

    _rmdir = _unlink

    def _unlinkat(self, arguments: list[str], texts: list[bytes], _result: int) -> None:
        self._drop(self._path(arguments[0], texts[0]))

    def _drop(self, path: str | None) -> None:
        if path is not None and not self._ignored(path):
            del self._names[path]
            self.operations.append(Names((self._name(path, None),)))

    def _mkdir(self, _arguments: list[str], texts: list[bytes], _result: int) -> None:
        path = self._path("AT_FDCWD", texts[0])
        if path is not None:
            self._make(path, folder=True)

    def _mkdirat(self, arguments: list[str], texts: list[bytes], _result: int) -> None:
        path = self._path(arguments[0], texts[0])
        if path is not None:
            self._make(path, folder=True)
