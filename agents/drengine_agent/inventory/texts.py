"""Small files of /proc, /sys and /etc, read so that nothing in them can do harm."""

from __future__ import annotations

from pathlib import Path

FILE_BYTES_MAX = 1 << 20
LINE_CHARACTERS_MAX = 200


def text_of(path: Path) -> str:
    """What a file says, at most FILE_BYTES_MAX of it; empty where it can't be read."""
    try:
        with path.open("rb") as file:
            return file.read(FILE_BYTES_MAX).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def number_of(path: Path) -> int:
    """A number that a file says; 0 where it says none."""
    text = text_of(path)
    return int(text) if text.isascii() and text.isdigit() else 0


def printable(text: str) -> str:
    """A line for people: what can't be printed is a question mark, and what is too long is cut."""
    return "".join(char if char.isprintable() else "?" for char in text.strip())[:LINE_CHARACTERS_MAX]


def assignments(text: str) -> dict[str, str]:
    """`KEY=value` or `KEY="value"`, line by line."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip().strip("\"'") for key, _, value in pairs}
