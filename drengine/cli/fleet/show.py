"""`drengine fleet`: every source in a table."""

from __future__ import annotations

from typing import Annotated

import typer

from drengine.cli.common import JsonOption
from drengine.cli.fleet.desk import ask_fleet
from drengine.cli.run_options import LookOptions
from drengine.fleet.answers import SourceAnswer
from drengine.terminal import emit_json, human_age, human_duration, note, show_table
from drengine.terminal.options import grouped

app = typer.Typer(add_completion=False)

UNKNOWN = "?"


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
    heads = ("source", "state", "version", "lag", "tracker", "point", "cert", "ring")
    if shown:
        show_table(heads, [_row(each, found.at_ns) for each in shown], title="Fleet")
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
        _lag(each),
        each.tracker,
        human_duration(age) if age is not None else "",
        "" if days is None else "expired" if days < 0 else f"{days:.0f} d",
        each.ring,
    )


def _state(each: SourceAnswer, now_ns: int) -> str:
    if each.retired_ns:
        return "retired"
    if not each.joined:
        return "expected"
    if each.silent_since_ns:
        return f"silent {human_age(each.silent_since_ns, now_ns)}"
    if each.connected is None:
        return UNKNOWN
    return each.state if each.reason in ("", "none") else f"{each.state} ({each.reason})"


def _lag(each: SourceAnswer) -> str:
    return human_duration(each.lag_seconds) if each.lag_seconds is not None else ""
