"""What the doctor is told: tried on this kernel, and with what other kernels and fewer privileges would answer."""

from __future__ import annotations

import errno
import platform
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drengine_agent.capture.ebpf import btf, probe, syscalls
from drengine_agent.capture.ebpf.btf import KernelTypes, UnknownTypeError
from tests.agent.capture.ebpf.rig import needs_kernel


@needs_kernel
def test_this_kernel_can_do_all_and_the_self_test_sees_exactly_what_it_wrote() -> None:
    facts = probe.probe()
    assert facts.obstacles == {}
    assert (facts.system_call, facts.types, facts.maps, facts.request_programs, facts.attaching) == ("",) * 5
    assert (facts.bio_programs, facts.pinning, facts.grace_period) == ("",) * 3
    assert facts.capabilities
    assert facts.memory_lock_bytes
    assert facts.machine == platform.machine()
    assert facts.machine in probe.KERNEL_MIN
    result = probe.self_test()
    assert result.passed, result.seen


@needs_kernel
def test_without_privileges_every_trial_says_so_and_nothing_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> int:
        raise OSError(errno.EPERM, "map create: Operation not permitted")

    monkeypatch.setattr(syscalls, "map_create", refused)
    facts = probe.probe()
    assert "not permitted" in facts.obstacles["maps"]
    assert {"system_call", "maps", "request_programs", "attaching", "pinning"} <= set(facts.obstacles)
    result = probe.self_test()
    assert not result.passed
    assert "not permitted" in result.seen


@needs_kernel
def test_a_kernel_without_its_types_or_without_atomics_is_told_by_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(btf.KernelTypes, "load", lambda: KernelTypes(b""))
        assert "types" in probe.probe().obstacles
        assert not probe.self_test().passed

    def refused(*_: object, **__: object) -> int:
        raise syscalls.VerifierError(errno.EINVAL, "x" * 9000 + "BPF_ATOMIC uses invalid atomic opcode 40")

    monkeypatch.setattr(syscalls, "program_load", refused)
    told = probe.probe().obstacles["request_programs"]
    assert told.endswith("BPF_ATOMIC uses invalid atomic opcode 40")
    assert len(told) < 2200


@given(st.binary(max_size=200))
def test_types_that_are_damaged_are_refused_and_never_crash(junk: bytes) -> None:
    for blob in (junk, struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 64, 64, 64) + junk):
        try:
            types = KernelTypes(blob)
            types.offset("request", "q")
        except UnknownTypeError:
            continue
        raise AssertionError("junk has no request")
