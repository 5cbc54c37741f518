"""`drengine audit verify`: whether anybody changed the log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from drengine.audit.errors import AUDIT_BROKEN, AUDIT_UNUSABLE
from drengine.audit.verify import Anchor, Checked, read_anchors
from drengine.audit.verify import verify as check
from drengine.cli.audit.reading import LogArgument, log_in
from drengine.cli.common import JsonOption
from drengine.model.errors import DrengineError
from drengine.terminal import emit_json

app = typer.Typer(add_completion=False)
_ANCHOR = re.compile(r"(?:(\d{1,16}):)?([0-9a-f]{64})")


@app.command()
def verify(
    log: LogArgument,
    anchor: Annotated[
        list[str] | None, typer.Option("--anchor", help="HASH or NUMBER:HASH of an entry, as it was kept elsewhere.")
    ] = None,
    anchors: Annotated[
        Path | None, typer.Option("--anchors", help="File with what syslog or the webhook received.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Check that each entry follows the one before, and is the one that anchors know."""
    directory = log_in(log)
    checked = check(directory, [*map(_anchor, anchor or ()), *_received(anchors)])
    if json:
        emit_json({"log": directory, "intact": not checked.broken, **_told(checked)})
    if checked.broken:
        where = f"entry {checked.broken_number}: " if checked.broken_number else ""
        raise DrengineError(AUDIT_BROKEN, f"{directory / checked.broken_file}: {where}{checked.broken}")
    if not json:
        print(_summary(checked))


def _summary(checked: Checked) -> str:
    if not checked.last:
        return "the log has no entries yet"
    kept = f"{checked.last - checked.first + 1} entries" if checked.first else "no entries"
    lines = [f"{kept}, up to number {checked.last} with hash {checked.hash}, are as they were written"]
    if checked.removed:
        lines.append(f"entries 1 to {checked.removed} were removed by retention")
    if checked.mended:
        lines.append(f"parts of entries that a crash left, and nobody relied on: {checked.mended}")
    if checked.unfinished_bytes:
        lines.append(f"behind the last entry are {checked.unfinished_bytes} bytes of one that a crash interrupted")
    if checked.anchors:
        lines.append(f"anchors that agree: {checked.anchors}")
    if checked.not_compared:
        lines.append(f"anchors of entries that were removed: {checked.not_compared}")
    return "\n".join(lines)


def _told(checked: Checked) -> dict[str, object]:
    return {name: getattr(checked, name) for name in Checked.__slots__}


def _anchor(text: str) -> Anchor:
    match = _ANCHOR.fullmatch(text)
    if not match:
        raise typer.BadParameter(f"{text[:80]!r} is neither HASH nor NUMBER:HASH; a hash has 64 hexadecimal digits")
    return Anchor(match[2], int(match[1] or 0))


def _received(file: Path | None) -> list[Anchor]:
    if file is None:
        return []
    try:
        return read_anchors(file.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise DrengineError(AUDIT_UNUSABLE, f"{file}: {error.strerror or error}") from error
    except ValueError as error:
        raise DrengineError(AUDIT_UNUSABLE, f"{file}: {error}") from error
