"""What a disk may hold after a crash, given the operations before it.

Rules, those of POSIX and no kinder: what was synced is there. What was written to a file since its last sync
may be there or not, in any combination, each write possibly torn between sectors. Names that changed since their
folder's last sync may have changed or not, in any combination, a rename as a whole. Syncing a file does not sync
its name.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tests.crash.recording import Data, Names, Operation, Recording, Resize, Said, Sync

SECTOR_BYTES = 512

Tree = dict[str, bytes | None]
"""Content of each file by its path; None for a folder."""


@dataclass(slots=True)
class _File:
    now: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    pending: list[Data | Resize] = field(default_factory=list)


class Disk:
    """Takes operations one by one; hands out what a crash at this moment may leave."""

    def __init__(self, recording: Recording) -> None:
        self._folders = recording.folders
        self._files: dict[int, _File] = {}
        self._now: dict[int, dict[str, int]] = {inode: {} for inode in recording.folders}
        self._synced: dict[int, dict[str, int]] = {inode: {} for inode in recording.folders}
        self._pending: list[Names] = []
        """Changes of names of which no folder was synced since."""

    def apply(self, operation: Operation) -> bool:
        """Take an operation; whether what a crash leaves may differ now."""
        match operation:
            case Data() | Resize():
                file = self._files[operation.inode]
                change(file.now, operation)
                file.pending.append(operation)
            case Names():
                for folder, name, inode in operation.changes:
                    if inode is not None and inode not in self._folders:
                        self._files.setdefault(inode, _File())
                    _set(self._now[folder], name, inode)
                self._pending.append(operation)
            case Sync() if operation.inode in self._folders:
                self._synced[operation.inode] = dict(self._now[operation.inode])
                kept = [names for names in self._pending if all(c[0] != operation.inode for c in names.changes)]
                changed = len(kept) < len(self._pending)
                self._pending = kept
                return changed
            case Sync():
                file = self._files[operation.inode]
                changed = bool(file.pending)
                file.synced, file.pending = bytes(file.now), []
                return changed
            case Said():
                return False
        return True

    def strict(self) -> Tree:
        """Only what was synced."""
        return self._tree(self._synced, {inode: file.synced for inode, file in self._files.items()})

    def eager(self) -> Tree:
        """Everything."""
        return self._tree(self._now, {inode: bytes(file.now) for inode, file in self._files.items()})

    def names_first(self) -> Tree:
        """All names, but of the contents only what was synced: the zero-length file after a rename."""
        return self._tree(self._now, {inode: file.synced for inode, file in self._files.items()})

    def contents_first(self) -> Tree:
        """All contents, but of the names only those synced."""
        return self._tree(self._synced, {inode: bytes(file.now) for inode, file in self._files.items()})

    def reordered(self, chosen: random.Random) -> Tree:
        """A random legal outcome."""
        names = {inode: dict(entries) for inode, entries in self._synced.items()}
        persists = chosen.choice((0.1, 0.5, 0.9))
        for change_of_names in self._pending:
            if chosen.random() < persists:
                for folder, name, inode in change_of_names.changes:
                    _set(names[folder], name, inode)
        persists = chosen.choice((0.1, 0.5, 0.9))
        contents = {}
        for inode, file in self._files.items():
            content = bytearray(file.synced)
            for pending in file.pending:
                if chosen.random() < persists:
                    change(content, pending)
                elif isinstance(pending, Data) and chosen.random() < 0.5:
                    for part in torn(pending, chosen):
                        change(content, part)
            contents[inode] = bytes(content)
        return self._tree(names, contents)

    def _tree(self, names: dict[int, dict[str, int]], contents: dict[int, bytes]) -> Tree:
        tree: Tree = {}
        todo = [("", 0)]
        while todo:
            path, folder = todo.pop()
            for name, inode in sorted(names[folder].items()):
                if inode in self._folders:
                    tree[path + name] = None
                    todo.append((f"{path}{name}/", inode))
                else:
                    tree[path + name] = contents[inode]
        return tree


def change(content: bytearray, operation: Data | Resize) -> None:
    """Carry out a write or a resize; a write behind the end leaves zeros in between."""
    if isinstance(operation, Resize):
        if operation.size < len(content):
            del content[operation.size :]
        else:
            content += bytes(operation.size - len(content))
        return
    if operation.offset > len(content):
        content += bytes(operation.offset - len(content))
    content[operation.offset : operation.offset + len(operation.data)] = operation.data


def torn(write: Data, chosen: random.Random) -> list[Data]:
    """Some of a write's sectors."""
    parts, at, end = [], write.offset, write.offset + len(write.data)
    while at < end:
        stop = min(end, (at // SECTOR_BYTES + 1) * SECTOR_BYTES)
        if chosen.random() < 0.5:
            parts.append(Data(write.inode, at, write.data[at - write.offset : stop - write.offset]))
        at = stop
    return parts


def _set(entries: dict[str, int], name: str, inode: int | None) -> None:
    if inode is None:
        entries.pop(name, None)
    else:
        entries[name] = inode
