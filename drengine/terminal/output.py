"""Output: for people with tables and units they read, for machines as JSON on standard output."""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drengine.model.errors import DrengineError, error_kind
from drengine.terminal.streams import printable, styled
from drengine.terminal.tree import Branch

if TYPE_CHECKING:
    from drengine.terminal.coloured import Screen

OUTPUT_FAILED = error_kind(
    "output-failed",
    52,
    "Standard output could not be written.",
    "Free space where it goes, or send it elsewhere. The command did its work; what it said is lost.",
)


def is_terminal() -> bool:
    """Whether a person looks at standard output."""
    return sys.stdout.isatty()


def emit_json(value: Any) -> None:
    """Print one JSON value on a line of its own; dataclasses become objects."""
    write_output(json.dumps(value, default=_plain) + "\n")


def write_output(text: str) -> None:
    """Write a document to standard output now, with what was printed before: as it is, unless to a terminal.

    Raises:
        DrengineError: OUTPUT_FAILED.
        BrokenPipeError: whoever read it has gone.
    """
    (sys.stdout if is_terminal() else styled(sys.stdout)).write(text)
    sys.stdout.flush()
    failure = getattr(sys.stdout, "failure", None)
    if isinstance(failure, BrokenPipeError):
        raise failure
    if failure is not None:
        raise DrengineError(OUTPUT_FAILED, f"standard output: {failure.strerror or failure}")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def note(text: str) -> None:
    """Tell a person something that is not the command's result: goes to standard error."""
    print(text, file=sys.stderr, flush=True)


def is_agreed(question: str) -> bool:
    """Ask a person, on standard error; False where nobody is there to answer."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"{printable(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().casefold() in ("y", "yes")


def human_bytes(count: float) -> str:
    """``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def human_duration(seconds: float) -> str:
    """``0.25 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``, ``3 d 4 h``."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for large, small, in_large, in_small in (("min", "s", 60, 1), ("h", "min", 3600, 60), ("d", "h", 86400, 3600)):
        if large == "d" or whole < in_large * (60 if large == "min" else 24):
            return f"{whole // in_large} {large} {whole % in_large // in_small} {small}"
    raise AssertionError


def human_time(time_ns: int) -> str:
    """``2026-11-23 10:00:00.123Z``."""
    seconds, rest = divmod(time_ns, 10**9)  # whole numbers: a point must not be shown later than it is
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{rest // 10**6:03d}Z"


def exact_time(time_ns: int) -> str:
    """``2026-11-23T10:00:00.123456789Z``, for machines."""
    seconds, rest = divmod(time_ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"


def human_age(time_ns: int, now_ns: int) -> str:
    """How long ago, or "in the future" where clocks disagree."""
    return human_duration((now_ns - time_ns) / 1e9) if now_ns >= time_ns else "in the future"


def show_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", styles: Sequence[str] = ()
) -> None:
    """A table for people: ruled and coloured at a terminal, plain columns elsewhere.

    Args:
        headings, rows, title: what it says.
        styles: how the first cell of each row is coloured; empty: not at all.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    if not is_terminal():
        widths = [max(len(row[at]) for row in [headings, *rows]) for at in range(len(headings))]
        for row in [headings, *rows]:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    _screen().table(headings, rows, title=title, styles=styles)


@contextmanager
def progress_bar(what: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error with rate and remaining time; nothing when `quiet` or nobody looks.

    It is told how many bytes are done, of how many.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    with _screen().bar(what) as advance:
        yield advance


def live_tree(draw: Callable[[], Branch]) -> AbstractContextManager[object]:
    """A tree that is drawn again and again at a terminal, until left, so that times tick."""
    return _screen().live(draw)


def _screen() -> type[Screen]:
    from drengine.terminal.coloured import Screen  # noqa: PLC0415 - rich costs 60 ms, which only terminals pay

    return Screen
