"""The guest's fstab: every device by a name that holds on any hardware."""

from __future__ import annotations

import re
from collections.abc import Iterator

from drengine.conversion.devices import Device, Devices, hardware_name, stable_name
from drengine.model.inventory import FstabLine

_LINE = re.compile(r"(\s*)(\S+)(\s+)(\S+)(\s+)(\S+)(?:(\s+)(\S+))?(.*)")
_OURS = ("UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=", "/dev/")
_NEVER_WAITED_FOR = {"nofail", "noauto"}
_NEEDED_AT = {"/", "/usr"}
_OPTICAL = ("/dev/sr", "/dev/cdrom", "/dev/fd", "/dev/dvd")


def read_fstab(text: str) -> Iterator[FstabLine]:
    """Its lines; what is no line of an fstab is left out."""
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match and not match[2].startswith("#"):
            yield FstabLine(device=match[2], at=unescaped(match[4]), kind=match[6], options=match[8] or "defaults")


def convert_fstab(text: str, devices: Devices, root: Device) -> tuple[str, list[str]]:
    """The text with stable names, and notes about file systems whose disks are not there.

    Those get `nofail`: the guest starts without them. Comments, order and spaces stay as they are.
    """
    notes: list[str] = []
    lines = [_convert_line(line, devices, root, notes) for line in text.split("\n")]
    return "\n".join(lines), notes


def unescaped(word: str) -> str:
    """fstab(5) writes a space as octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), word)


def _convert_line(line: str, devices: Devices, root: Device, notes: list[str]) -> str:
    match = _LINE.fullmatch(line)
    if match is None or match[2].startswith("#") or not match[2].startswith(_OURS):
        return line
    indent, device, gap, at, second, kind, third, options, rest = match.groups(default="")
    if device.startswith(_OPTICAL):
        return line
    found = root if at == "/" else devices.named(device)
    if found is None:
        chosen = set(options.split(","))
        if chosen & _NEVER_WAITED_FOR or at in _NEEDED_AT:
            return line
        notes.append(f"{device} at {at} is on no disk that is replicated: the guest starts without it (nofail)")
        options = f"{options},nofail" if options else "nofail"
        return f"{indent}{device}{gap}{at}{second}{kind}{third or ' '}{options}{rest}"
    stable = stable_name(found) if hardware_name(device) else ""
    return f"{indent}{stable or device}{line[match.end(2) :]}"
