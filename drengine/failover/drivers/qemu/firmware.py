"""The machine's firmware: BIOS comes with QEMU; UEFI is OVMF, whose variables each machine has a copy of."""

from __future__ import annotations

import json
from pathlib import Path

from drengine.durable import replace_durably
from drengine.failover.drivers.errors import LAUNCH_FAILED
from drengine.failover.drivers.qemu.settings import BIOS, UEFI, QemuSettings
from drengine.failover.needs import ReadableFile
from drengine.model.errors import DrengineError
from drengine.model.inventory import Inventory

_DEBIAN, _RED_HAT = Path("/usr/share/OVMF"), Path("/usr/share/edk2/ovmf")
PAIRS = (
    (_DEBIAN / "OVMF_CODE_4M.fd", _DEBIAN / "OVMF_VARS_4M.fd"),
    (_DEBIAN / "OVMF_CODE.fd", _DEBIAN / "OVMF_VARS.fd"),
    (_RED_HAT / "OVMF_CODE.fd", _RED_HAT / "OVMF_VARS.fd"),
    (_RED_HAT / "OVMF_CODE.cc.fd", _RED_HAT / "OVMF_VARS.fd"),
    (Path("/usr/share/edk2/x64/OVMF_CODE.4m.fd"), Path("/usr/share/edk2/x64/OVMF_VARS.4m.fd")),
    (Path("/usr/share/qemu/ovmf-x86_64-code.bin"), Path("/usr/share/qemu/ovmf-x86_64-vars.bin")),
)
"""Code and fresh variables, without Secure Boot, as distributions install them; the first that is there is taken."""
_VARIABLES = "variables.fd"


def firmware_of(settings: QemuSettings, inventory: Inventory | None) -> str:
    """`bios`, `uefi`, or the path of an image."""
    if settings.firmware:
        return settings.firmware
    booted_by_uefi = inventory is not None and inventory.boot_mode == UEFI and not settings.kernel
    return UEFI if booted_by_uefi else BIOS


def firmware_needs(firmware: str) -> tuple[ReadableFile, ...]:
    """Files that it takes."""
    if firmware == BIOS:
        return ()
    if firmware == UEFI:
        return tuple(ReadableFile(str(file)) for file in (_pair() or PAIRS[0]))
    return (ReadableFile(firmware),)


def firmware_arguments(firmware: str, directory: Path) -> list[str]:
    """QEMU's arguments. The machine's own UEFI variables are made unless they are there, from an earlier start.

    Raises:
        DrengineError: LAUNCH_FAILED, there is no UEFI firmware here.
    """
    if firmware == BIOS:
        return []
    if firmware != UEFI:
        return ["-bios", firmware]
    pair = _pair()
    if pair is None:
        places = ", ".join(str(code) for code, _ in PAIRS)
        raise DrengineError(
            LAUNCH_FAILED,
            f"no UEFI firmware is installed; looked for {places}",
            hint="Install it (Debian: ovmf, RHEL: edk2-ovmf), or give the runbook's `firmware` the path of an image.",
        )
    variables = directory / _VARIABLES
    if not variables.exists():
        replace_durably(variables, pair[1].read_bytes())
    code = {"driver": "file", "filename": str(pair[0]), "node-name": "firmware", "read-only": True}
    own = {"driver": "file", "filename": _VARIABLES, "node-name": "variables"}
    return [
        *("-blockdev", json.dumps(code), "-blockdev", json.dumps(own)),
        *("-machine", "pflash0=firmware,pflash1=variables"),
    ]


def _pair() -> tuple[Path, Path] | None:
    return next(((code, variables) for code, variables in PAIRS if code.is_file() and variables.is_file()), None)
