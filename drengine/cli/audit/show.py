"""`drengine audit show` and `export`: what was done."""

from __future__ import annotations

import json as json_
from collections import deque
from pathlib import Path
from typing import Annotated

import typer

from drengine.audit import Entry
from drengine.audit.errors import AUDIT_UNUSABLE
from drengine.cli.audit.reading import LogArgument, Wanted, answer
from drengine.cli.common import JsonOption
from drengine.model.errors import DrengineError
from drengine.terminal import emit_json, human_time, note, show_table
from drengine.terminal.options import grouped
from drengine.terminal.output import write_output

app = typer.Typer(add_completion=False)


@app.command()
@grouped
def show(
    log: LogArgument,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="At most so many, the newest.")] = 50,
    json: JsonOption = False,
    *,
    wanted: Wanted,
) -> None:
    """Show who did what, oldest first."""
    found = deque(wanted.entries(log), maxlen=number)
    if json:
        emit_json([answer(line) for line in found])
        return
    show_table(
        ("number", "when", "who", "proved by", "did", "on", "outcome"),
        [
            (
                str(entry.number),
                human_time(entry.at_ns),
                entry.who,
                entry.proved or "-",
                entry.did,
                entry.on,
                _outcome(entry),
            )
            for entry in (line.entry for line in found)
        ],
    )


@app.command()
@grouped
def export(
    log: LogArgument,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File; default: standard output.")] = None,
    *,
    wanted: Wanted,
) -> None:
    """Write entries as lines of JSON, each with its hash, for an archive or another program."""
    lines = (json_.dumps(answer(line), sort_keys=True) + "\n" for line in wanted.entries(log))
    if output is None:
        for text in lines:
            write_output(text)
        return
    try:
        with output.open("w", encoding="utf-8") as file:
            file.writelines(lines)
    except OSError as error:
        raise DrengineError(AUDIT_UNUSABLE, f"{output}: {error.strerror or error}") from error
    note(f"wrote {output}")


def _outcome(entry: Entry) -> str:
    text = f"{entry.outcome}: {entry.error}" if entry.error else str(entry.outcome)
    return f"{text} ({entry.times} times)" if entry.times > 1 else text
