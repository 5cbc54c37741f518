"""Keeps docs/protocol.md current: `python -m drengine.wire.document` rewrites its marked sections from the code."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from drengine.model.extents import (
    BATCH_EXTENTS_MAX,
    BATCH_FRAMES_MAX,
    BATCH_PLAIN_BYTES_MAX,
    FRAME_PLAIN_BYTES_MAX,
)
from drengine.model.inventory import DOCUMENT_BYTES_MAX
from drengine.wire.connection import MOVES, READ_AHEAD_BYTES, VERSION_MAX, VERSION_MIN, Role, State
from drengine.wire.errors import REASONS
from drengine.wire.events import ABILITIES
from drengine.wire.fields import (
    ABILITIES_MAX,
    DIGESTS_MAX,
    ENDPOINTS_MAX,
    SAMPLES_MAX,
    SPANS_MAX,
    TEXT_BYTES_MAX,
    VOLUMES_MAX,
)
from drengine.wire.frames import (
    BATCH_FRAME_BYTES_MAX,
    CARRIERS,
    CREDIT_BYTES_MAX,
    HEADER,
    HEADER_FIELDS,
    LAYOUTS,
    META_BYTES_MAX,
    FrameType,
)
from drengine.wire.payload import PAYLOAD_BYTES_MAX, RAW_ABOVE, WINDOW_BYTES_MAX
from drengine.wire.terms import FETCHES_OPEN_MAX, NEEDS, QUERIES_OPEN_MAX

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"

_WIDTHS = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _header() -> str:
    rows, at = [], 0
    for name, type_, note in HEADER_FIELDS:
        rows.append((str(at), type_, name, note))
        at += _WIDTHS[type_]
    assert at == HEADER.size
    return _table(("at", "type", "field", "meaning"), rows)


def _diagram() -> str:
    arrows: dict[tuple[State, State], list[str]] = {}
    for (before, role), moves in MOVES.items():
        for kind, after in moves.items():
            arrows.setdefault((before, after), []).append(f"{kind.name}→" if role is Role.AGENT else f"←{kind.name}")
    lines = [f"    [*] --> {State.OPENING.upper()}"]
    for (before, after), labels in arrows.items():
        lines.append(f"    {before.upper()} --> {after.upper()}: {' '.join(labels)}")
    lines.append(f"    {State.CLOSED.upper()} --> [*]")
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```"])


def _moves() -> str:
    rows = []
    for kind in FrameType:
        cells = []
        for state in State:
            said = [
                f"{role} (then {moves[kind]})" if moves[kind] is not state else str(role)
                for role in Role
                if kind in (moves := MOVES[state, role])
            ]
            cells.append(", ".join(said))
        rows.append((kind.name, *cells))
    return _table(("", *(state.upper() for state in State)), rows)


def _frames() -> str:
    parts = []
    for kind, layout in LAYOUTS.items():
        by = " or ".join(role for role in Role if any(kind in MOVES[state, role] for state in State))
        extra = f", then a payload of at most {PAYLOAD_BYTES_MAX} bytes" if kind in CARRIERS else ""
        parts.append(
            f"### {kind.value} {kind.name}\n\nBy the {by}; meta of at most {META_BYTES_MAX[kind]} bytes{extra}."
        )
        if layout.fields:
            rows = [(field.name, field.type.text, field.note) for field in layout.fields]
            parts.append(_table(("field", "bytes", "meaning"), rows))
        if layout.rules:
            parts.append("\n".join(f"- {rule.text}" for rule in layout.rules))
    return "\n\n".join(parts)


def _abilities() -> str:
    users: dict[str, list[str]] = {name: [] for name in sorted(ABILITIES)}
    for event, ability in NEEDS.items():
        users[ability].append(next(kind.name for kind, layout in LAYOUTS.items() if layout.event is event))
    users["zstd"].append("BATCH and FETCHED with a compressed frame")
    users["reverse"].append("HELLO with an errand")
    users["homes"].append("REFUSE with `source-moved`; others are told `fenced`")
    return _table(("ability", "needed for"), [(name, ", ".join(used)) for name, used in users.items()])


def _limits() -> str:
    rows = [
        ("versions spoken", f"{VERSION_MIN} to {VERSION_MAX}"),
        ("plain bytes of a batch", str(BATCH_PLAIN_BYTES_MAX)),
        ("payload bytes of a batch", str(PAYLOAD_BYTES_MAX)),
        ("extents of a batch", str(BATCH_EXTENTS_MAX)),
        ("frames of a batch", str(BATCH_FRAMES_MAX)),
        ("plain bytes of a frame", str(FRAME_PLAIN_BYTES_MAX)),
        ("bytes of the largest frame, and smallest first credit", str(BATCH_FRAME_BYTES_MAX)),
        ("credit outstanding, bytes", str(CREDIT_BYTES_MAX)),
        ("zstd window, bytes", str(WINDOW_BYTES_MAX)),
        ("a frame goes raw when compressing leaves at least", f"{RAW_ABOVE:.0%}"),
        ("volumes of a source", str(VOLUMES_MAX)),
        ("abilities", str(ABILITIES_MAX)),
        ("chunks of a question", str(DIGESTS_MAX)),
        ("questions open", str(QUERIES_OPEN_MAX)),
        ("ranges of a question or answer", str(SPANS_MAX)),
        ("questions for bytes open", str(FETCHES_OPEN_MAX)),
        ("samples of a report of metrics", str(SAMPLES_MAX)),
        ("bytes of an inventory", str(DOCUMENT_BYTES_MAX)),
        ("addresses of another target", str(ENDPOINTS_MAX)),
        ("bytes of a label or message", str(TEXT_BYTES_MAX)),
        ("bytes read ahead", str(READ_AHEAD_BYTES)),
    ]
    return _table(("limit", "value"), rows)


def _reasons() -> str:
    return _table(("reason", "meaning"), [(f"`{reason}`", text) for reason, text in REASONS.items()])


SECTIONS: dict[str, Callable[[], str]] = {
    "header": _header,
    "diagram": _diagram,
    "moves": _moves,
    "frames": _frames,
    "abilities": _abilities,
    "limits": _limits,
    "reasons": _reasons,
}


def rewritten(page: str) -> str:
    """The page with each marked section made anew.

    Raises:
        ValueError: a section's marks are missing.
    """
    for name, make in SECTIONS.items():
        begin, end = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        section = f"{begin}\n{make()}\n{end}"
        page, count = pattern.subn(lambda _, text=section: text, page)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"the page has {count} sections {name!r}")
    return page


def main() -> int:
    """Rewrite the page."""
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
