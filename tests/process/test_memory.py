"""Buffers that come and go cost page faults once."""

from __future__ import annotations

import subprocess
import sys

import pytest

TURNS, BUFFERS, MIB = 50, 4, 1 << 20

PROGRAM = f"""
import resource, sys
from drengine.process.memory import keep_freed_memory
if "keep" in sys.argv:
    keep_freed_memory()
def turn():
    held = [bytearray({MIB}) for _ in range({BUFFERS})]
    for each in held:
        each[::4096] = bytes(256)
turn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({TURNS}):
    turn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_freed_buffers_are_used_again_without_faults() -> None:
    if (without := faults()) < 1000:
        pytest.skip("this C library keeps freed memory by itself")
    assert faults("keep") < without / 20
