"""Programs made slow on purpose, between reading which half is active and marking in it: races become likely."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from drengine_agent.capture.ebpf import program
from drengine_agent.capture.ebpf.instructions import Assembler, Do, If

TURNS = 30_000
"""About 30 microseconds; more and the verifier gives up counting."""


@contextmanager
def slow_programs(*, copies: int = program.COPIES) -> Iterator[None]:
    """Programs built inside linger before each call that marks."""
    plain = program._call_set

    def lingering(code: Assembler, base: int) -> None:
        label = f"linger-{len(code._code)}"
        code.do_value(Do.MOVE, 3, 0)
        code.label(label)
        code.do_value(Do.ADD, 3, 1)
        code.jump_if_value(If.BELOW, 3, TURNS, label)
        plain(code, base)

    with mock.patch.object(program, "_call_set", lingering), mock.patch.object(program, "COPIES", copies):
        yield
