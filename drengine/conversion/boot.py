"""What the guest's boot loader tells its kernel: the root by a stable name, and a serial console."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

from drengine.conversion.devices import Devices, hardware_name, stable_name

SERIAL_SPEED = 115200
_NAMING = ("root=", "resume=")
_KERNEL_LINE = re.compile(r"(\s*(?:linux|linux16|linuxefi|options|set kernelopts=|kernelopts=)\s*)(.*)")
_ASSIGNMENT = re.compile(r"\s*(?:export\s+)?([A-Z_]+)=(.*)")


def convert_command_line(line: str, devices: Devices, console: str) -> str:
    """Words of a kernel's command line; a console that is named last is the one that /dev/console is."""
    words = [_stable_word(word, devices) for word in line.split()]
    if console and not any(word.startswith(f"console={console}") for word in words):
        words += [] if any(word.startswith("console=tty0") for word in words) else ["console=tty0"]
        words.append(f"console={console},{SERIAL_SPEED}")
    return " ".join(words)


def convert_grub_defaults(text: str, devices: Devices, console: str) -> str:
    """/etc/default/grub: what the next grub.cfg is made from."""
    unit = console.removeprefix("ttyS") if console.startswith("ttyS") else ""

    def command_line(value: str) -> str:
        return convert_command_line(value, devices, "")

    lines = [_changed(line, "GRUB_CMDLINE_LINUX_DEFAULT", command_line) for line in text.splitlines()]
    lines = [line for line in lines if (_name(line), _value(line)) != ("GRUB_DISABLE_LINUX_UUID", "true")]
    lines = _set(lines, "GRUB_CMDLINE_LINUX", lambda value: convert_command_line(value, devices, console))
    if unit:
        lines = _set(lines, "GRUB_TERMINAL", lambda value: value if "serial" in value else "console serial")
        lines = [line for line in lines if _name(line) not in {"GRUB_TERMINAL_INPUT", "GRUB_TERMINAL_OUTPUT"}]
        serial = f"serial --unit={unit} --speed={SERIAL_SPEED}"
        lines = _set(lines, "GRUB_SERIAL_COMMAND", lambda value: value or serial)
    return "\n".join(lines) + "\n"


def convert_entries(text: str, devices: Devices, console: str) -> str:
    """Lines that hold a kernel's command line: of a grub.cfg, of an entry of the boot loader specification."""
    return "\n".join(_converted_entry(line, devices, console) for line in text.split("\n"))


def names_hardware(text: str) -> bool:
    """Whether a boot loader's file still gives a kernel a root that depends on the hardware."""
    return any(
        word.startswith(_NAMING) and hardware_name(word.partition("=")[2])
        for line in text.splitlines()
        if _KERNEL_LINE.fullmatch(line)
        for word in line.split()
    )


def _converted_entry(line: str, devices: Devices, console: str) -> str:
    match = _KERNEL_LINE.fullmatch(line)
    if match is None or "root=" not in match[2]:
        return line
    return match[1] + convert_command_line(match[2], devices, console)


def _stable_word(word: str, devices: Devices) -> str:
    name, _, value = word.partition("=")
    if f"{name}=" not in _NAMING or not hardware_name(value):
        return word
    found = devices.named(value)
    stable = stable_name(found) if found else ""
    return f"{name}={stable}" if stable else word


def _set(lines: list[str], name: str, change: Callable[[str], str]) -> list[str]:
    """Lines in which a variable is changed; where it is not set, it is set at the end if there is something to say."""
    if any(_name(line) == name for line in lines):
        return [_changed(line, name, change) for line in lines]
    value = change("")
    return [*lines, f"{name}={_quoted(value)}"] if value else lines


def _changed(line: str, name: str, change: Callable[[str], str]) -> str:
    if _name(line) != name:
        return line
    before = _value(line)
    after = change(before)
    return line if after.split() == before.split() else f"{name}={_quoted(after)}"


def _quoted(value: str) -> str:
    return f'"{value}"' if not re.search(r'["$`\\]', value) else shlex.quote(value)


def _name(line: str) -> str:
    match = _ASSIGNMENT.fullmatch(line)
    return match[1] if match else ""


def _value(line: str) -> str:
    match = _ASSIGNMENT.fullmatch(line)
    try:
        return " ".join(shlex.split(match[2], comments=True)) if match else ""
    except ValueError:
        return ""
