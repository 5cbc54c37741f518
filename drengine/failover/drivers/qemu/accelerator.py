"""Whether a machine runs on KVM here: a guest is tried.

A /dev/kvm that opens says little: under some hypervisors a guest hangs, or each of its instructions is emulated, so
slowly that QEMU's own emulation is much faster. So a tiny guest is run with the same QEMU, machine and processor: it
enters protected mode, counts to 67 million and ends. On working hardware that takes 0.1 s. The verdict holds until the
host is booted again.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from pathlib import Path

import msgspec

from drengine.durable import replace_durably
from drengine.failover.drivers.qemu.settings import QemuSettings
from drengine.process.environment import command_environment

KVM = Path("/dev/kvm")
BOOT = Path("/proc/sys/kernel/random/boot_id")
VERDICTS = ".kvm.json"
"""Beside the instances' directories."""

PROBE_SECONDS, PROBE_KILL_SECONDS = 1.7, 0.3
_UNKILLABLE_SECONDS = 1.0
_LOOK_SECONDS = 0.01
_WORDS_BYTES = 4096
_KILLED = -9
_TOO_LONG = {124, 137, _KILLED}
"""How timeout(1) ends."""

_DONE = 0x2A
_DONE_STATUS = (_DONE << 1) | 1
"""How QEMU ends when the guest writes to the device isa-debug-exit."""

_IMAGE = "probe.img"
_IMAGE_BYTES = 1 << 16
_FROM_RESET = bytes.fromhex("e90d00")  # jmp 0, from 0xfff0
_GUEST = bytes.fromhex(
    "ea050000f0"  # ljmp 0xf000:5
    "2e660f01163900"  # lgdtl %cs:0x39
    "0f20c00c010f22c0"  # cr0 |= 1: protected mode
    "66ea1c000f000800"  # ljmpl 8:0xf001c
    "b900000004"  # mov 1 << 26, %ecx
    "4975fd"  # 1: dec %ecx; jnz 1b
    "b02ae6f4f4"  # mov 0x2a, %al; out %al, 0xf4; hlt
    "0000000000000000ffff0000009acf00"  # no segment; flat code
    "0f0029000f00"  # their table's size and place
)
_one_at_a_time = threading.Lock()


class Accelerator(msgspec.Struct, frozen=True):
    """What runs a machine's instructions.

    Attributes:
        name: `kvm` or `tcg`.
        reason: why it is not kvm; empty: it is, or the runbook says so.
    """

    name: str
    reason: str = ""


class _Verdict(msgspec.Struct, frozen=True):
    """`fault` is why KVM is not used; `boot` the host's start that it was found in."""

    boot: str
    fault: str


def choose_accelerator(settings: QemuSettings, directory: Path) -> Accelerator:
    """What the settings want, `auto` by trying in the instance's directory; verdicts are kept beside that."""
    if settings.accelerator != "auto":
        return Accelerator(settings.accelerator)
    try:
        os.close(os.open(KVM, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return Accelerator("tcg", f"{KVM} can't be opened: {error.strerror or error}")
    with _one_at_a_time:
        fault = _fault(settings, directory)
    return Accelerator("tcg", fault) if fault else Accelerator("kvm")


def _fault(settings: QemuSettings, directory: Path) -> str:
    file = directory.parent / VERDICTS
    boot = BOOT.read_text(encoding="ascii").strip()
    about = " ".join((settings.program, settings.machine, settings.cpu))
    verdicts = _read(file)
    known = verdicts.get(about)
    if known and known.boot == boot:
        return known.fault
    fault, is_certain = probe(settings, directory)
    if is_certain:
        with contextlib.suppress(OSError):  # it is found again
            replace_durably(file, msgspec.json.encode({**verdicts, about: _Verdict(boot, fault)}))
    return fault


def _read(file: Path) -> dict[str, _Verdict]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, _Verdict])
    except (OSError, msgspec.DecodeError):
        return {}


def probe(
    settings: QemuSettings, directory: Path, on: str = "kvm", *, seconds: float = PROBE_SECONDS
) -> tuple[str, bool]:
    """Why a guest does not run on an accelerator (empty: it does), and whether that is certain.

    It is not if the guest got little of the processor: the host may only have been busy. `timeout` ends QEMU even if
    this process is killed meanwhile.
    """
    image = directory / _IMAGE
    image.write_bytes(_GUEST.ljust(_IMAGE_BYTES - 16, b"\xf4") + _FROM_RESET.ljust(16, b"\xf4"))
    argv = ["timeout", "-k", str(PROBE_KILL_SECONDS), str(seconds), settings.program]
    argv += ["-nodefaults", "-no-user-config", "-machine", settings.machine, "-accel", on, "-cpu", settings.cpu]
    argv += ["-display", "none", "-m", "32", "-bios", str(image), "-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
    try:
        status, cpu_seconds, words = _run(argv, seconds + _UNKILLABLE_SECONDS)
    except OSError as error:
        return f"{argv[0]} can't be started: {error}", False
    finally:
        image.unlink(missing_ok=True)
    if status == _DONE_STATUS:
        return "", True
    if status in _TOO_LONG:
        return f"a guest that only counts did not end within {seconds:g} s", cpu_seconds > seconds / 2
    return f"a guest does not start: {words or f'exit status {status}'}", True


def _run(argv: list[str], seconds: float) -> tuple[int, float, str]:
    """How it ended, what it took of the processor, and its last line. A process that can't be killed is left alone."""
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=command_environment()
    ) as process:
        deadline = time.monotonic() + seconds
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                process.returncode = _KILLED  # nobody waits for it any more
                return _KILLED, 0.0, ""
            time.sleep(_LOOK_SECONDS)
        process.returncode = os.waitstatus_to_exitcode(ended[1])
        assert process.stderr is not None
        lines = process.stderr.read(_WORDS_BYTES).decode(errors="replace").strip().splitlines()
        return process.returncode, ended[2].ru_utime + ended[2].ru_stime, lines[-1] if lines else ""
