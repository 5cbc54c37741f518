"""Where the running kernel keeps what: field offsets and numbers out of its own type description (BTF).

No constant about the kernel's structures is built in. The verifier checks every one of these offsets again,
against the same description, when a program is loaded.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

VMLINUX: Final = Path("/sys/kernel/btf/vmlinux")
BTF_BYTES_MAX: Final = 64 << 20
_MAGIC: Final = 0xEB9F
_STRUCT, _UNION, _ENUM, _TYPEDEF, _ENUM64 = 4, 5, 6, 8, 19
_INT, _ARRAY, _FUNC_PROTO, _VAR, _DATASEC, _DECL_TAG = 1, 3, 13, 14, 15, 17
_FIXED_TAIL_BYTES: Final = {_INT: 4, _ARRAY: 12, _VAR: 4, _DECL_TAG: 4}
_ENTRY_BYTES: Final = {_STRUCT: 12, _UNION: 12, _ENUM: 8, _FUNC_PROTO: 8, _DATASEC: 12, _ENUM64: 12}
_MODIFIERS: Final = frozenset({8, 9, 10, 11, 18})


class UnknownTypeError(LookupError):
    """This kernel's types lack a name, or the description is damaged."""


class KernelTypes:
    """The types of one kernel, looked up by name."""

    def __init__(self, blob: bytes) -> None:
        """Index a BTF blob.

        Raises:
            UnknownTypeError: it is no BTF, or cut short.
        """
        try:
            magic, _, _, header, types, types_length, strings, strings_length = struct.unpack_from("<HBBIIIII", blob)
            if magic != _MAGIC or header + strings + strings_length > len(blob):
                raise UnknownTypeError("no BTF of this byte order")
            self._blob = blob
            self._strings = header + strings
            self._strings_end = self._strings + strings_length
            self._offsets = _index(blob, header + types, header + types + types_length)
        except struct.error as error:
            raise UnknownTypeError("the BTF is cut short") from error

    @staticmethod
    def load(path: Path = VMLINUX) -> KernelTypes:
        """The running kernel's types.

        Raises:
            UnknownTypeError: the kernel has no BTF (CONFIG_DEBUG_INFO_BTF).
        """
        try:
            with path.open("rb") as file:
                return KernelTypes(file.read(BTF_BYTES_MAX))
        except OSError as error:
            raise UnknownTypeError(f"{path}: {error.strerror}") from error

    def typedef(self, name: str) -> int:
        """The number of a typedef; tracepoints are known as `btf_trace_NAME`."""
        return self._find(name, (_TYPEDEF,))

    def offset(self, structure: str, *path: str) -> int:
        """Bytes from a structure's beginning to a member, through nested members."""
        number = self._find(structure, (_STRUCT,))
        total = 0
        for name in path:
            found = self._member(number, name)
            if found is None:
                raise UnknownTypeError(f"struct {structure} has no {'.'.join(path)}")
            bits, number = found
            total += bits // 8
        return total

    def has(self, structure: str, member: str) -> bool:
        """Whether a structure has such a member."""
        return self._member(self._find(structure, (_STRUCT,)), member) is not None

    def enumerators(self, prefix: str) -> dict[str, int]:
        """All enumerators whose name begins with `prefix`, with their values."""
        found: dict[str, int] = {}
        starts = self._string_offsets(prefix)
        for offset in self._offsets[1:]:
            kind, count, flag, _ = self._header(offset)
            if kind != _ENUM:
                continue
            for index in range(count):
                name, value = struct.unpack_from("<Ii" if flag else "<II", self._blob, offset + 12 + 8 * index)
                if name in starts:
                    found[starts[name]] = value
        return found

    def _member(self, number: int, wanted: str) -> tuple[int, int] | None:
        """(bits from the beginning, type) of a member, looking into nameless members too."""
        number = self._resolve(number)
        offset = self._offsets[number]
        kind, count, flag, _ = self._header(offset)
        if kind not in (_STRUCT, _UNION):
            return None
        for index in range(count):
            name, member, bits = struct.unpack_from("<III", self._blob, offset + 12 + 12 * index)
            if flag:
                bits &= 0xFFFFFF
            if name and self._string(name) == wanted:
                return bits, member
            if not name:
                inner = self._member(member, wanted)
                if inner is not None:
                    return bits + inner[0], inner[1]
        return None

    def _resolve(self, number: int) -> int:
        for _ in range(32):
            kind, _, _, reference = self._header(self._offsets[number])
            if kind not in _MODIFIERS:
                return number
            number = reference
        raise UnknownTypeError("the BTF goes in circles")

    def _find(self, name: str, kinds: tuple[int, ...]) -> int:
        starts = [offset for offset, text in self._string_offsets(name).items() if text == name]
        for number in range(1, len(self._offsets)):
            offset = self._offsets[number]
            if struct.unpack_from("<I", self._blob, offset)[0] in starts and self._header(offset)[0] in kinds:
                return number
        raise UnknownTypeError(f"the kernel's BTF does not know {name}")

    def _string_offsets(self, prefix: str) -> dict[int, str]:
        """Offsets of all strings that begin with `prefix`."""
        found: dict[int, str] = {}
        needle, at = b"\0" + prefix.encode(), self._strings
        while (at := self._blob.find(needle, at, self._strings_end)) >= 0:
            start = at + 1 - self._strings
            found[start] = self._string(start)
            at += 1
        return found

    def _string(self, offset: int) -> str:
        start = self._strings + offset
        end = self._blob.index(b"\0", start, self._strings_end)
        return self._blob[start:end].decode("ascii", "replace")

    def _header(self, offset: int) -> tuple[int, int, bool, int]:
        """(kind, count of entries, flag, size or referenced type)."""
        info, size = struct.unpack_from("<II", self._blob, offset + 4)
        return info >> 24 & 0x1F, info & 0xFFFF, bool(info >> 31), size


def _index(blob: bytes, start: int, end: int) -> list[int]:
    """The place of each type, by number; number 0 is `void`."""
    offsets = [0]
    unpack = struct.Struct("<I").unpack_from
    while start < end:
        offsets.append(start)
        (info,) = unpack(blob, start + 4)
        kind = info >> 24 & 0x1F
        start += 12 + _FIXED_TAIL_BYTES.get(kind, 0) + _ENTRY_BYTES.get(kind, 0) * (info & 0xFFFF)
    return offsets
