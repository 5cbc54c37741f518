"""The programs that run inside the kernel: two for disks that complete requests, two for devices that complete bios.

The order inside a run is the whole proof (docs/ebpf.md): set the blocks' bits, then the summary's, then add to the
counter, all atomically, all before the kernel tells anyone that the operation is complete.

The kernel leaves a run out when the same program is running on that CPU already (an interrupt that completes a
request while a task completes another). Therefore each program is attached COPIES times: task, soft
interrupt and hard interrupt are all the levels there are, so one copy is always free. What they do more than once
they do to the same bits.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from drengine_agent.capture.ebpf import layout, syscalls
from drengine_agent.capture.ebpf.instructions import (
    MAP_DELETE_HELPER,
    MAP_LOOKUP_HELPER,
    MAP_UPDATE_HELPER,
    RESULT,
    STACK,
    Assembler,
    Do,
    If,
    Width,
)
from drengine_agent.capture.ebpf.layout import Region
from drengine_agent.capture.ebpf.offsets import (
    BIO_COMPLETE_EVENT,
    BIO_QUEUE_EVENT,
    EVENTS,
    ISSUE_EVENT,
    REQUEST_EVENT,
    Offsets,
)

__all__ = ["COPIES", "REQUEST_EVENT", "Maps", "Program", "fingerprint", "load", "programs"]

COPIES: Final = 3
FINE_WORDS_MAX: Final = 128
LOOP_WORDS_MAX: Final = FINE_WORDS_MAX + 2
INFLIGHT_ENTRIES: Final = 1 << 16
INFLIGHT_KEY_BYTES, INFLIGHT_VALUE_BYTES = 8, 32

LEDGER_WORDS_MAX: Final = ((1 << 32) // layout.BLOCK_BYTES // layout.LEDGER_BLOCKS) // 64 + 2
"""The longest request has not quite 4 GiB."""
_OPERATION_MASK: Final = 0xFF
_PASSED_OUT: Final = ("REQ_OP_DRV_OUT", "REQ_OP_SCSI_OUT")
_PASSED_IN: Final = ("REQ_OP_DRV_IN", "REQ_OP_SCSI_IN")
# The stack: what `mark` needs, and room for the inflight map's key.
_BYTES, _FINE, _COARSE, _FIRST, _LAST, _ACTIVE, _KEY = -8, -16, -24, -32, -40, -48, -56


@dataclass(frozen=True, slots=True)
class Maps:
    """File descriptors of the maps that the programs use; `inflight` is -1 without bio devices."""

    control: int
    bits: int
    inflight: int = -1


@dataclass(frozen=True, slots=True)
class Program:
    """One program to load and attach: its name among the pins, its event, its instructions."""

    name: str
    event: str
    code: bytes


def programs(regions: Sequence[Region], offsets: Offsets, maps: Maps) -> list[Program]:
    """All programs for these regions, in the order in which they must be attached.

    Requests: the ledger first. Bios: completions first; one that is queued before its completion program is there
    would leave its record behind, one that completes before its queue program is there is counted as unmatched.
    """
    built: list[Program] = []
    indexed = list(enumerate(regions))
    for_requests = [(index, region) for index, region in indexed if not region.bio]
    for_bios = [(index, region) for index, region in indexed if region.bio]
    if for_requests:
        built.append(Program("issue-0", ISSUE_EVENT, _on_issue(for_requests, offsets, maps)))
    for copy in range(COPIES):
        if for_requests:
            built.append(Program(f"request-{copy}", REQUEST_EVENT, _on_request(for_requests, offsets, maps, copy)))
    for copy in range(COPIES):
        if for_bios:
            last = copy == COPIES - 1
            code = _on_bio_complete(for_bios, offsets, maps, forget=last)
            built.append(Program(f"complete-{copy}", BIO_COMPLETE_EVENT, code))
    for copy in range(COPIES):
        if for_bios:
            built.append(Program(f"queue-{copy}", BIO_QUEUE_EVENT, _on_bio_queue(for_bios, offsets, maps)))
    return built


def fingerprint() -> bytes:
    """16 bytes that change when the programs or the layout do; so an upgraded agent knows foreign state."""
    names = ("READ", "WRITE", "FLUSH", "DRV_IN", "DRV_OUT", "SCSI_IN", "SCSI_OUT")
    offsets = Offsets(
        {name: number for number, name in enumerate(EVENTS)},
        {f"REQ_OP_{name}": number for number, name in enumerate(names)},
        8, None, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96,
    )  # fmt: skip
    regions = [Region(1, False, 0, 8, 0, 0), Region(2, True, 0, 8, 0, 0)]
    digest = hashlib.sha256(bytes([layout.VERSION]))
    for program in programs(regions, offsets, Maps(1, 2, 3)):
        digest.update(program.name.encode() + program.code)
    return digest.digest()[:16]


def load(each: Program, offsets: Offsets) -> int:
    """Have the kernel take a program; if the verifier refuses, again with its log, for the error.

    Raises:
        OSError: refused; a VerifierError with the end of the log if the verifier did.
    """
    name, btf_id = f"dr_{each.name.replace('-', '_')}", offsets.events[each.event]
    try:
        return syscalls.program_load(each.code, attach_btf_id=btf_id, name=name)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOMEM):
            raise
        return syscalls.program_load(each.code, attach_btf_id=btf_id, name=name, log=True)


Regions = Sequence[tuple[int, Region]]


def _on_request(regions: Regions, offsets: Offsets, maps: Maps, copy: int) -> bytes:
    """block_rq_complete(struct request *, status, bytes): called before the request's bios are ended."""
    code = Assembler()
    code.load(Width.U64, 6, 1, 0)
    code.load(Width.U64, 2, 1, 16)
    code.store(Width.U64, STACK, _BYTES, 2)
    _begin_request(code, regions, offsets, maps)
    for name in (*_PASSED_OUT, *_PASSED_IN):
        if name in offsets.operations:
            label = "passed-out" if name in _PASSED_OUT else "passed-in"
            code.jump_if_value(If.EQUAL, 7, offsets.operations[name], label)
    # The kernel adds the same sectors to the disk's statistics a moment later; `audit` compares the sums.
    code.load(Width.U32, 4, STACK, _BYTES)
    code.do(Do.MOVE, 3, 4)
    code.do_value(Do.SHIFT_RIGHT, 3, 9)
    code.atomic_add(9, layout.REGION_SECTORS + 8 * copy, 3)
    # The longer of what completes now and what the request still has: failed and partial ones count whole.
    code.load(Width.U64, 5, 6, offsets.request_sector)
    code.load(Width.U32, 0, 6, offsets.request_bytes)
    code.jump_if(If.AT_LEAST, 0, 4, "longer")
    code.do(Do.MOVE, 0, 4)
    code.label("longer")
    _clip(code)
    _mark(code)
    code.jump("out")
    for label, place in (("passed-out", layout.REGION_PASSED_OUT), ("passed-in", layout.REGION_PASSED_IN)):
        code.label(label)
        code.do_value(Do.MOVE, 1, 1)
        code.atomic_add(9, place, 1)
        code.jump("out")
    _out(code)
    _set_function(code, maps)
    return code.finish()


def _on_issue(regions: Regions, offsets: Offsets, maps: Maps) -> bytes:
    """block_rq_issue(struct request *): note in the ledger what is about to be changed."""
    code = Assembler()
    code.load(Width.U64, 6, 1, 0)
    _begin_request(code, regions, offsets, maps)
    code.load(Width.U64, 5, 6, offsets.request_sector)
    code.load(Width.U32, 0, 6, offsets.request_bytes)
    _clip(code)
    code.load(Width.U64, 4, 9, layout.REGION_LEDGER)
    for register, source in ((1, 5), (2, 0)):
        code.do(Do.MOVE, register, source)
        code.do_value(Do.SHIFT_RIGHT, register, layout.LEDGER_BLOCKS_SHIFT)
        code.do(Do.ADD, register, 4)
    code.load(Width.U64, 3, 8, layout.AT_LEDGER)
    code.call("set")
    _out(code)
    _set_function(code, maps, words_max=LEDGER_WORDS_MAX, with_summary=False)
    return code.finish()


def _begin_request(code: Assembler, regions: Regions, offsets: Offsets, maps: Maps) -> None:
    """6: the request. Leaves 7: its operation, and what `_find_region` leaves, or leaves the program."""
    code.load(Width.U32, 7, 6, offsets.request_flags)
    _leave_if_unchanging(code, offsets)
    if offsets.request_disk is not None:
        code.load(Width.U64, 2, 6, offsets.request_disk)
    else:
        code.load(Width.U64, 2, 6, offsets.request_queue)
        code.load(Width.U64, 2, 2, offsets.queue_disk)
    _find_region(code, regions, offsets, maps, disk=2)


def _on_bio_queue(regions: Regions, offsets: Offsets, maps: Maps) -> bytes:
    """block_bio_queue(struct bio *): remember the whole range; at completion a split bio shows only its rest."""
    code = Assembler()
    code.load(Width.U64, 6, 1, 0)
    code.load(Width.U32, 7, 6, offsets.bio_flags)
    _leave_if_unchanging(code, offsets)
    code.load(Width.U64, 2, 6, offsets.bio_device)
    code.load(Width.U64, 2, 2, offsets.device_disk)
    _find_region(code, regions, offsets, maps, disk=2)
    code.load(Width.U64, 5, 6, offsets.bio_sector)
    code.load(Width.U32, 0, 6, offsets.bio_bytes)
    _clip(code)
    code.store(Width.U64, STACK, _FIRST, 5)
    code.store(Width.U64, STACK, _LAST, 0)
    code.store(Width.U64, STACK, _KEY, 6)
    code.address_of_map(1, maps.inflight)
    _stack_address(code, 2, _KEY)
    _stack_address(code, 3, _LAST)
    code.do_value(Do.MOVE, 4, 0)
    code.call_helper(MAP_UPDATE_HELPER)
    code.jump_if_value(If.EQUAL, 0, 0, "out")
    code.do_value(Do.MOVE, 1, 1)
    code.atomic_add(8, layout.AT_UNRECORDED, 1)
    _out(code)
    return code.finish()


def _on_bio_complete(regions: Regions, offsets: Offsets, maps: Maps, *, forget: bool) -> bytes:
    """block_bio_complete(struct request_queue *, struct bio *): called before the bio's owner is told."""
    code = Assembler()
    code.load(Width.U64, 6, 1, 8)
    code.load(Width.U32, 7, 6, offsets.bio_flags)
    _leave_if_unchanging(code, offsets)
    code.address_of_value(8, maps.control)
    code.store(Width.U64, STACK, _KEY, 6)
    code.address_of_map(1, maps.inflight)
    _stack_address(code, 2, _KEY)
    code.call_helper(MAP_LOOKUP_HELPER)
    code.jump_if_value(If.EQUAL, 0, 0, "unknown")
    # The record lies as `_on_bio_queue` left it on its stack: last, first, coarse, fine.
    for place, slot in ((16, _COARSE), (24, _FINE)):
        code.load(Width.U64, 1, 0, place)
        code.store(Width.U64, STACK, slot, 1)
    code.load(Width.U64, 5, 0, 8)
    code.load(Width.U64, 0, 0, 0)
    _mark(code)
    if forget:
        code.address_of_map(1, maps.inflight)
        _stack_address(code, 2, _KEY)
        code.call_helper(MAP_DELETE_HELPER)
    code.jump("out")
    code.label("unknown")
    code.load(Width.U64, 2, 6, offsets.bio_device)
    code.load(Width.U64, 2, 2, offsets.device_disk)
    _find_region(code, regions, offsets, maps, disk=2)
    code.do_value(Do.MOVE, 3, 1)
    code.atomic_add(8, layout.AT_UNMATCHED, 3)
    code.load(Width.U64, 5, 6, offsets.bio_sector)
    code.load(Width.U32, 0, 6, offsets.bio_bytes)
    _clip(code)
    _mark(code, "rest")
    _out(code)
    _set_function(code, maps)
    return code.finish()


def _leave_if_unchanging(code: Assembler, offsets: Offsets) -> None:
    """Register 7: the flags, then the operation alone. Reads and pure flushes change nothing."""
    code.do_value(Do.AND, 7, _OPERATION_MASK)
    for name in ("READ", "FLUSH"):
        code.jump_if_value(If.EQUAL, 7, offsets.operations[f"REQ_OP_{name}"], "out")


def _find_region(code: Assembler, regions: Regions, offsets: Offsets, maps: Maps, *, disk: int) -> None:
    """Leave unless the disk is watched; then 8: control, 9: the region, 1 and 2: its sectors, its bits on the stack."""
    code.load(Width.U32, 3, disk, offsets.disk_major)
    code.load(Width.U32, 4, disk, offsets.disk_minor)
    code.do32_value(Do.SHIFT_LEFT, 3, 20)
    code.do32(Do.OR, 3, 4)
    for index, region in regions:
        number = region.disk - (1 << 32) if region.disk >= 1 << 31 else region.disk
        code.jump32_if_value(If.EQUAL, 3, number, f"region-{index}")
    code.jump("out")
    for index, _ in regions:
        code.label(f"region-{index}")
        code.do_value(Do.MOVE, 3, layout.AT_REGIONS + index * layout.REGION_BYTES)
        code.jump("region")
    code.label("region")
    code.address_of_value(8, maps.control)
    code.jump_if_value(If.ABOVE, 3, layout.AT_VOLUMES - layout.REGION_BYTES, "out")
    code.do(Do.MOVE, 9, 8)
    code.do(Do.ADD, 9, 3)
    code.load(Width.U64, 1, 9, layout.REGION_FINE)
    code.store(Width.U64, STACK, _FINE, 1)
    code.load(Width.U64, 1, 9, layout.REGION_COARSE)
    code.store(Width.U64, STACK, _COARSE, 1)
    code.load(Width.U64, 1, 9, layout.REGION_START)
    code.load(Width.U64, 2, 9, layout.REGION_END)


def _clip(code: Assembler) -> None:
    """5: first sector, 0: bytes, 1 and 2: the region. Leaves 5: first block, 0: last block, or leaves the program."""
    code.do_value(Do.ADD, 0, 511)
    code.do_value(Do.SHIFT_RIGHT, 0, 9)
    code.do(Do.ADD, 0, 5)
    for register, limit, condition, label in ((5, 1, If.AT_LEAST, "low"), (0, 2, If.AT_MOST, "high")):
        code.jump_if(condition, register, limit, label)
        code.do(Do.MOVE, register, limit)
        code.label(label)
    code.jump_if(If.AT_LEAST, 5, 0, "out")
    code.do_value(Do.SUBTRACT, 0, 1)
    for register in (5, 0):
        code.do(Do.SUBTRACT, register, 1)
        code.do_value(Do.SHIFT_RIGHT, register, layout.BLOCK_SECTORS_SHIFT)


def _mark(code: Assembler, prefix: str = "mark") -> None:
    """5: first block, 0: last block of the region on the stack. Sets bits, then counts.

    A range of more words than the loop may walk is cut in three: its fine head, coarse bits, its fine tail.
    """
    shift, unit = layout.COARSE_BLOCKS_SHIFT, layout.COARSE_BLOCKS
    code.load(Width.U64, 1, 8, layout.AT_ACTIVE)
    code.store(Width.U64, STACK, _ACTIVE, 1)
    code.store(Width.U64, STACK, _FIRST, 5)
    code.store(Width.U64, STACK, _LAST, 0)
    code.do(Do.MOVE, 1, 5)
    code.do(Do.MOVE, 2, 0)
    code.do_value(Do.SHIFT_RIGHT, 1, 6)
    code.do_value(Do.SHIFT_RIGHT, 2, 6)
    code.do(Do.SUBTRACT, 2, 1)
    code.jump_if_value(If.AT_LEAST, 2, FINE_WORDS_MAX, f"{prefix}-long")
    code.do(Do.MOVE, 1, 5)
    code.do(Do.MOVE, 2, 0)
    _call_set(code, _FINE)
    code.jump(f"{prefix}-count")

    code.label(f"{prefix}-long")
    code.do(Do.MOVE, 1, 5)
    code.do(Do.MOVE, 2, 5)
    code.do_value(Do.ADD, 2, unit - 1)
    code.do_value(Do.SHIFT_RIGHT, 2, shift)
    code.do_value(Do.SHIFT_LEFT, 2, shift)
    code.jump_if(If.AT_LEAST, 1, 2, f"{prefix}-coarse")
    code.do_value(Do.SUBTRACT, 2, 1)
    _call_set(code, _FINE)
    code.label(f"{prefix}-coarse")
    code.load(Width.U64, 1, STACK, _FIRST)
    code.do_value(Do.ADD, 1, unit - 1)
    code.do_value(Do.SHIFT_RIGHT, 1, shift)
    code.load(Width.U64, 2, STACK, _LAST)
    code.do_value(Do.ADD, 2, 1)
    code.do_value(Do.SHIFT_RIGHT, 2, shift)
    code.do_value(Do.SUBTRACT, 2, 1)
    _call_set(code, _COARSE)
    code.load(Width.U64, 2, STACK, _LAST)
    code.do(Do.MOVE, 1, 2)
    code.do_value(Do.ADD, 1, 1)
    code.do_value(Do.SHIFT_RIGHT, 1, shift)
    code.do_value(Do.SHIFT_LEFT, 1, shift)
    code.jump_if(If.ABOVE, 1, 2, f"{prefix}-count")
    _call_set(code, _FINE)

    code.label(f"{prefix}-count")
    code.do_value(Do.MOVE, 1, 1)
    code.atomic_add(8, layout.AT_COUNTER, 1)


def _call_set(code: Assembler, base: int) -> None:
    """Set bits 1 to 2, counted from a base on the stack."""
    code.load(Width.U64, 3, STACK, base)
    code.do(Do.ADD, 1, 3)
    code.do(Do.ADD, 2, 3)
    code.load(Width.U64, 3, STACK, _ACTIVE)
    code.call("set")


def _set_function(code: Assembler, maps: Maps, *, words_max: int = LOOP_WORDS_MAX, with_summary: bool = True) -> None:
    """set(first bit, last bit, first word of the half or ledger): so many words, then their pages' summary bits.

    A bit that is set already is not written again, so a hot block costs no traffic between CPUs.
    """
    key, last_word, last_mask, active, first_page = -4, -16, -24, -32, -40
    code.label("set")
    code.store(Width.U64, STACK, active, 3)
    code.do(Do.MOVE, 6, 1)
    code.do_value(Do.SHIFT_RIGHT, 6, 6)
    code.do(Do.MOVE, 7, 2)
    code.do_value(Do.SHIFT_RIGHT, 7, 6)
    code.store(Width.U64, STACK, last_word, 7)
    code.do(Do.MOVE, 4, 6)
    code.do_value(Do.SHIFT_RIGHT, 4, 9)
    code.store(Width.U64, STACK, first_page, 4)
    code.do(Do.ADD, 6, 3)
    code.do(Do.ADD, 7, 3)
    code.do_value(Do.AND, 1, 63)
    code.do_value(Do.MOVE, 8, -1)
    code.do(Do.SHIFT_LEFT, 8, 1)
    code.do_value(Do.AND, 2, 63)
    code.do_value(Do.MOVE, 3, 63)
    code.do(Do.SUBTRACT, 3, 2)
    code.do_value(Do.MOVE, 4, -1)
    code.do(Do.SHIFT_RIGHT, 4, 3)
    code.store(Width.U64, STACK, last_mask, 4)
    code.do_value(Do.MOVE, 9, 0)

    code.label("next-word")
    code.jump_if(If.NOT_EQUAL, 6, 7, "whole-word")
    code.load(Width.U64, 1, STACK, last_mask)
    code.do(Do.AND, 8, 1)
    code.label("whole-word")
    _look_up(code, maps, key, word=6)
    code.jump_if_value(If.EQUAL, 0, 0, "fault")
    _or_unless_set(code, 8, "word-done")
    code.jump_if(If.AT_LEAST, 6, 7, "words-done")
    code.do_value(Do.ADD, 6, 1)
    code.do_value(Do.MOVE, 8, -1)
    code.do_value(Do.ADD, 9, 1)
    code.jump_if_value(If.BELOW, 9, words_max, "next-word")
    code.jump("fault")

    code.label("words-done")
    if with_summary:
        _set_summary(code, maps, (first_page, last_word, active, key))
    code.label("set-done")
    code.do_value(Do.MOVE, 0, 0)
    code.leave()
    code.label("fault")  # a bit outside of the map, or a longer range: a defect, and never silent
    code.address_of_value(2, maps.control)
    code.do_value(Do.MOVE, 1, 1)
    code.atomic_add(2, layout.AT_FAULTS, 1)
    code.do_value(Do.MOVE, 0, 0)
    code.leave()


def _set_summary(code: Assembler, maps: Maps, slots: tuple[int, int, int, int]) -> None:
    """The bits of the first and of the last page, which are the same or neighbours."""
    first_page, last_word, active, key = slots
    code.load(Width.U64, 6, STACK, first_page)
    code.load(Width.U64, 7, STACK, last_word)
    code.do_value(Do.SHIFT_RIGHT, 7, 9)
    for turn in ("first", "last"):
        code.do(Do.MOVE, 1, 6)
        code.do_value(Do.SHIFT_RIGHT, 1, 6)
        code.load(Width.U64, 2, STACK, active)
        code.do(Do.ADD, 1, 2)
        _look_up(code, maps, key, word=1)
        code.jump_if_value(If.EQUAL, 0, 0, "fault")
        code.do(Do.MOVE, 1, 6)
        code.do_value(Do.AND, 1, 63)
        code.do_value(Do.MOVE, 8, 1)
        code.do(Do.SHIFT_LEFT, 8, 1)
        _or_unless_set(code, 8, f"{turn}-page-done")
        if turn == "first":
            code.jump_if(If.EQUAL, 6, 7, "set-done")
            code.do(Do.MOVE, 6, 7)


def _look_up(code: Assembler, maps: Maps, key: int, *, word: int) -> None:
    code.store(Width.U32, STACK, key, word)
    code.address_of_map(1, maps.bits)
    _stack_address(code, 2, key)
    code.call_helper(MAP_LOOKUP_HELPER)


def _or_unless_set(code: Assembler, mask: int, label: str) -> None:
    code.load(Width.U64, 1, RESULT, 0)
    code.do(Do.AND, 1, mask)
    code.jump_if(If.EQUAL, 1, mask, label)
    code.atomic_or(RESULT, 0, mask)
    code.label(label)


def _stack_address(code: Assembler, register: int, offset: int) -> None:
    code.do(Do.MOVE, register, STACK)
    code.do_value(Do.ADD, register, offset)


def _out(code: Assembler) -> None:
    code.label("out")
    code.do_value(Do.MOVE, RESULT, 0)
    code.leave()
