"""An assembler for BPF: instructions as method calls, jumps by label, bytes at the end.

Only what the tracker's programs use. Registers are 0 to 10 (0: result, 1 to 5: arguments, lost in a call,
6 to 9: kept, 10: the stack's end). Each method appends one instruction (`address_of_map` the double one).
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

RESULT, STACK = 0, 10
MAP_LOOKUP_HELPER, MAP_UPDATE_HELPER, MAP_DELETE_HELPER = 1, 2, 3

_LOAD_WIDE, _LOAD, _STORE_IMMEDIATE, _STORE, _ALU32, _JUMP, _JUMP32, _ALU64 = 0x18, 0x61, 0x62, 0x63, 4, 5, 6, 7
_REGISTER: Final = 0x08
_ATOMIC64: Final = 0xDB
_ATOMIC_OR, _ATOMIC_ADD_FETCH = 0x40, 0x01
_CALL, _EXIT, _GO = 0x85, 0x95, 0x05
_MAP_FD, _MAP_VALUE, _LOCAL_CALL = 1, 2, 1


class Width(IntEnum):
    """Bytes moved by a load or store, as the opcode's size bits."""

    U32 = 0x00
    U16 = 0x08
    U64 = 0x18


class Do(IntEnum):
    """Arithmetic: destination = destination (op) source."""

    ADD = 0x00
    SUBTRACT = 0x10
    OR = 0x40
    AND = 0x50
    SHIFT_LEFT = 0x60
    SHIFT_RIGHT = 0x70
    MOVE = 0xB0


class If(IntEnum):
    """Conditions of a jump, unsigned."""

    EQUAL = 0x10
    ABOVE = 0x20
    AT_LEAST = 0x30
    NOT_EQUAL = 0x50
    BELOW = 0xA0
    AT_MOST = 0xB0


class Assembler:
    """Collects instructions; `finish` resolves the labels."""

    def __init__(self) -> None:
        self._code: list[bytes] = []
        self._labels: dict[str, int] = {}
        self._jumps: list[tuple[int, str, bool]] = []

    def label(self, name: str) -> None:
        """The next instruction can be jumped to by this name."""
        if name in self._labels:
            raise ValueError(f"label {name} twice")
        self._labels[name] = len(self._code)

    def load(self, width: Width, destination: int, source: int, offset: int) -> None:
        """destination = *(source + offset)."""
        self._append(_LOAD & ~0x18 | width, destination, source, offset)

    def store(self, width: Width, destination: int, offset: int, source: int) -> None:
        """*(destination + offset) = source."""
        self._append(_STORE & ~0x18 | width, destination, source, offset)

    def do(self, action: Do, destination: int, source: int) -> None:
        """64-bit arithmetic with a register."""
        self._append(_ALU64 | action | _REGISTER, destination, source)

    def do_value(self, action: Do, destination: int, value: int) -> None:
        """64-bit arithmetic with a signed 32-bit number."""
        self._append(_ALU64 | action, destination, 0, 0, value)

    def do32(self, action: Do, destination: int, source: int) -> None:
        """32-bit arithmetic with a register; the upper half becomes zero."""
        self._append(_ALU32 | action | _REGISTER, destination, source)

    def do32_value(self, action: Do, destination: int, value: int) -> None:
        """32-bit arithmetic with a number; the upper half becomes zero."""
        self._append(_ALU32 | action, destination, 0, 0, value)

    def jump(self, label: str) -> None:
        """Go to the label."""
        self._to(label, _GO, 0, 0, 0)

    def jump_if(self, condition: If, left: int, right: int, label: str) -> None:
        """Go to the label if the 64-bit registers compare so."""
        self._to(label, _JUMP | condition | _REGISTER, left, right, 0)

    def jump_if_value(self, condition: If, left: int, value: int, label: str) -> None:
        """Go to the label if the 64-bit register compares so with a number."""
        self._to(label, _JUMP | condition, left, 0, value)

    def jump32_if_value(self, condition: If, left: int, value: int, label: str) -> None:
        """Go to the label if the lower half of the register compares so with a number."""
        self._to(label, _JUMP32 | condition, left, 0, value)

    def atomic_or(self, destination: int, offset: int, source: int) -> None:
        """*(u64)(destination + offset) |= source, in one step."""
        self._append(_ATOMIC64, destination, source, offset, _ATOMIC_OR)

    def atomic_add(self, destination: int, offset: int, source: int) -> None:
        """*(u64)(destination + offset) += source, a full barrier; source receives the old value."""
        self._append(_ATOMIC64, destination, source, offset, _ATOMIC_ADD_FETCH)

    def address_of_map(self, destination: int, map_fd: int) -> None:
        """destination = the map, for a helper."""
        self._wide(destination, _MAP_FD, map_fd)

    def address_of_value(self, destination: int, map_fd: int) -> None:
        """destination = the first byte of the only value of an array map."""
        self._wide(destination, _MAP_VALUE, map_fd)

    def call_helper(self, helper: int) -> None:
        """Call a function of the kernel."""
        self._append(_CALL, 0, 0, 0, helper)

    def call(self, label: str) -> None:
        """Call a function of this program."""
        self._jumps.append((len(self._code), label, True))
        self._append(_CALL, 0, _LOCAL_CALL, 0, 0)

    def leave(self) -> None:
        """Return from the function or program."""
        self._append(_EXIT)

    def finish(self) -> bytes:
        """The program's bytes."""
        code = list(self._code)
        for at, name, is_call in self._jumps:
            distance = self._labels[name] - at - 1
            field = struct.pack("<i", distance) if is_call else struct.pack("<h", distance)
            place = slice(4, 8) if is_call else slice(2, 4)
            instruction = bytearray(code[at])
            instruction[place] = field
            code[at] = bytes(instruction)
        return b"".join(code)

    def _to(self, label: str, opcode: int, left: int, right: int, value: int) -> None:
        self._jumps.append((len(self._code), label, False))
        self._append(opcode, left, right, 0, value)

    def _wide(self, destination: int, kind: int, map_fd: int) -> None:
        self._append(_LOAD_WIDE, destination, kind, 0, map_fd)
        self._append(0)

    def _append(self, opcode: int, destination: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> None:
        self._code.append(struct.pack("<BBhi", opcode, destination | source << 4, offset, value))
