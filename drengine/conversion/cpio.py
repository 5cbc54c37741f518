"""Writing a cpio archive (newc), which Linux takes as its initramfs (its documentation: initramfs buffer format)."""

from __future__ import annotations

import stat


class Archive:
    """An archive that grows in memory. Times and numbers are fixed, so the same content gives the same bytes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._known: set[str] = set()

    def directory(self, path: str) -> None:
        """A directory and those above it; one that is there is left alone."""
        parts = path.strip("/").split("/")
        for end in range(1, len(parts) + 1):
            name = "/".join(parts[:end])
            if name and name not in self._known:
                self._entry(name, stat.S_IFDIR | 0o755, b"")

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """A file with its directories; the first of a name counts."""
        self._put(path, stat.S_IFREG | mode, content)

    def link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._put(path, stat.S_IFLNK | 0o777, target.encode())

    def device(self, path: str, major: int, minor: int) -> None:
        """A character device."""
        self._put(path, stat.S_IFCHR | 0o600, b"", (major, minor))

    def finished(self) -> bytes:
        """The archive's bytes."""
        return b"".join((*self._parts, _entry("TRAILER!!!", 0, 0, b"", (0, 0))))

    def _put(self, path: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        name = path.strip("/")
        if "/" in name:
            self.directory(name.rpartition("/")[0])
        if name not in self._known:
            self._entry(name, mode, content, device)

    def _entry(self, name: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        self._known.add(name)
        self._parts.append(_entry(name, len(self._known), mode, content, device))


def _entry(name: str, number: int, mode: int, content: bytes, device: tuple[int, int]) -> bytes:
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (number, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)
