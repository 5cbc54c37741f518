"""`drengine identities`: who there is."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from drengine.cli.ca_options import CaOption, open_ca, shown_moment
from drengine.cli.common import JsonOption
from drengine.enrolment.seen import Seen, read_seen
from drengine.identity.index import Entry
from drengine.identity.names import Identity
from drengine.terminal import emit_json, human_duration, show_table

app = typer.Typer(add_completion=False)


@app.command()
def identities(
    ca: CaOption,
    all_: Annotated[bool, typer.Option("--all", help="Also those whose certificates are all expired.")] = False,
    json: JsonOption = False,
) -> None:
    """Show who has a certificate: role, until when, when last heard by the authority, revoked or not."""
    now, seen = time.time(), read_seen(ca)
    newest: dict[str, Entry] = {}
    for each in open_ca(ca).entries():  # oldest first
        newest[each.identity] = each
    found = [each for each in newest.values() if all_ or each.state(now) != "expired"]
    told = [_told(each, seen.get(each.identity), now) for each in sorted(found, key=lambda each: each.identity)]
    if json:
        emit_json(told)
        return
    rows = [
        (
            each["name"],
            each["role"],
            each["serial"],
            each["state"],
            each["valid_until"],
            human_duration(each["silent_seconds"]) + " ago" if each["last_seen"] else "never",
            each["address"],
        )
        for each in told
    ]
    show_table(("name", "role", "serial", "state", "valid until", "last seen", "from"), rows)


def _told(entry: Entry, seen: Seen | None, now: float) -> dict[str, Any]:
    identity, revoked = Identity.parse(entry.identity), entry.revoked_at
    return {
        "identity": entry.identity,
        "name": identity.name,
        "role": identity.role,
        "serial": entry.serial,
        "state": entry.state(now),
        "valid_until": shown_moment(entry.ends_at),
        "revoked_at": None if revoked is None else shown_moment(revoked),
        "last_seen": None if seen is None else shown_moment(seen.at),
        "silent_seconds": None if seen is None else max(0, int(now) - seen.at),
        "address": "" if seen is None else seen.address,
    }
