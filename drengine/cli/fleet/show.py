"""`drengine fleet`: every source in a table."""

from __future__ import annotations

from typing import Annotated

import typer

from drengine.cli.common import JsonOption
from drengine.cli.fleet.desk import ask_fleet
from drengine.cli.run_options import LookOptions
from drengine.fleet.answers import SourceAnswer
from drengine.terminal import emit_json, note, show_table
from drengine.terminal.options import grouped

app = typer.Typer(add_completion=False)

UNKNOWN = "?"
HEADS = ("source", "state", "version", "lag", "track", "point", "cert", "ring", "target")
"""Short, and left out where nobody has any: 80 columns hold them with their rules."""


@app.command()
@grouped
def show(
    all_: Annotated[bool, typer.Option("--all", help="Also those that are retired.")] = False,
    json: JsonOption = False,
    *,
    options: LookOptions,
) -> None:
    """Show every source: expected, joined or silent, version, lag, tracker, newest point, certificate.

    A ? stands where nobody can be asked now; below the table it says why.
    """
    found = ask_fleet(options, lambda desk: desk.look())
    if json:
        emit_json(found)
        return
    shown = [each for each in found.sources if all_ or not each.retired_ns]
    columns = [
        column for column in zip(HEADS, *(_row(each, found.at_ns) for each in shown), strict=True) if any(column[1:])
    ]
    if shown:
        heads, *rows = zip(*columns, strict=True)
        show_table(heads, rows, title="Fleet")
    for each in shown:
        if each.connected and each.reason not in ("", "none"):
            note(f"{each.source}: {each.state} ({each.reason})")
    for each in shown:
        if each.host or each.former_hosts:
            former = ", ".join(f"{name} ({how})" for name, how in each.former_hosts.items())
            note(f"{each.source} lives on {each.host or each.source}; before: {former}")
    note(f"{found.expected} expected, {found.joined} joined, {found.silent} silent, {found.retired} retired")
    for pattern, uses in found.open_tokens.items():
        note(f"a token for {pattern} may be used {uses} times more")
    for what, why in found.unknown.items():
        note(f"{what} can't be asked: {why}")
    behind = [each.source for each in shown if each.policy_taken is False]
    if behind:
        note(f"the newest policy is not in use yet at: {', '.join(behind)}")


def _row(each: SourceAnswer, now_ns: int) -> tuple[str, ...]:
    age = each.newest_point_age_seconds
    days = each.certificate_days
    return (
        each.source,
        _state(each, now_ns),
        each.version,
        _short(each.lag_seconds),
        each.tracker,
        _short(age),
        "" if days is None else "expired" if days < 0 else f"{days:.0f}d",
        each.ring,
        each.target,
    )


def _state(each: SourceAnswer, now_ns: int) -> str:
    if each.retired_ns:
        return "retired"
    if not each.joined:
        return "expected"
    if each.silent_since_ns:
        return f"silent {_short(max(0.0, (now_ns - each.silent_since_ns) / 1e9))}"
    if each.connected is None:
        return UNKNOWN
    return each.state or "SHIPPING"  # it has a session, and no broker tells how it stands


def _short(seconds: float | None) -> str:
    """``0.4s``, ``45s``, ``3m``, ``2h``, ``4d``: a column has room for no more."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.1f}s"
    units = ((60, 1, "s"), (3600, 60, "m"), (2 * 86400, 3600, "h"), (float("inf"), 86400, "d"))
    return next(f"{seconds / size:.0f}{unit}" for end, size, unit in units if seconds < end)
