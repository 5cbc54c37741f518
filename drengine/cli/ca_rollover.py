"""`drengine ca rollover`: one CA replaces another."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from drengine.audit import recorded
from drengine.cli.ca_options import CaOption, PassphraseOption, open_ca, seconds_of
from drengine.cli.common import JsonOption
from drengine.config.kinds import show_duration
from drengine.enrolment.rollover import take_step
from drengine.identity.authority import CA_SECONDS
from drengine.terminal import emit_json, note

app = typer.Typer(add_completion=False)


@app.command()
def rollover(
    ca: CaOption,
    force: Annotated[bool, typer.Option("--force", help="Take the next step although parties are not ready.")] = False,
    valid: Annotated[str, typer.Option("--valid", help="How long the new CA is valid.")] = show_duration(CA_SECONDS),
    passphrase_file: PassphraseOption = None,
    json: JsonOption = False,
) -> None:
    """Replace the CA, a step at each call: parties trust both; the new one issues; the old one goes."""
    opened = open_ca(ca, passphrase_file)
    with recorded(ca, "ca.rollover", opened.site, force=force):
        step = take_step(opened, now=time.time(), force=force, seconds=seconds_of(valid))
    if json:
        emit_json({"step": step.name, "next": step.then, "not_ready": step.not_ready})
        return
    print(step.told)
    note(step.then)
