"""`drengine fleet retire`: a source that is no more."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from drengine.audit import recorded
from drengine.cli.ca_options import PassphraseOption, open_ca
from drengine.cli.chosen import ca_directory
from drengine.cli.common import JsonOption
from drengine.cli.fleet.desk import ask_fleet
from drengine.cli.run_options import LookOptions
from drengine.fleet.errors import RETIRE_REFUSED
from drengine.fleet.expected import issued_in
from drengine.identity.names import Identity, Role
from drengine.model.errors import DrengineError
from drengine.terminal import emit_json, note
from drengine.terminal.options import grouped

app = typer.Typer(add_completion=False)


@app.command()
@grouped
def retire(
    source: Annotated[str, typer.Argument(help="Its name.")],
    ca: Annotated[
        Path | None,
        typer.Option(
            "--ca",
            envvar="DRENGINE_CA",
            help="The CA's directory, to revoke its identity; else `ca` of [fleet] as DRENGINE_CONFIG says.",
            callback=ca_directory,
        ),
    ] = None,
    keep_identity: Annotated[
        bool, typer.Option("--keep-identity", help="Its certificate is revoked elsewhere, or shall stay valid.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Also while it is connected.")] = False,
    passphrase_file: PassphraseOption = None,
    json: JsonOption = False,
    *,
    options: LookOptions,
) -> None:
    """End a source: its identity is revoked, its metrics and alerts end, its points go by retention.

    It comes back by joining again, with another certificate; where there are none, by `drengine source add`.
    """
    serials = list(issued_in(ca, time.time()).serials.get(source, ())) if ca else []
    could = ask_fleet(options, lambda desk: desk.retire(source, force=force, dry_run=True))
    if could.has_certificate and ca is None and not keep_identity:
        hint = "Name the CA's directory with --ca; or --keep-identity, and revoke it where the CA is."
        raise DrengineError(RETIRE_REFUSED, f"{source!r} has a certificate, which stays valid", hint=hint)
    done = ask_fleet(options, lambda desk: desk.retire(source, force=force, serials=serials))
    revoked = _revoke(ca, source, passphrase_file) if ca and serials and not keep_identity else []
    if json:
        emit_json({"source": source, "retired": done.retired, "revoked": revoked})
        return
    print(f"{source} is retired")
    for serial in revoked:
        print(f"revoked its certificate {serial}")
    note("its points stay until their retention ends")


def _revoke(ca: Path, source: str, passphrase_file: Path | None) -> list[str]:
    """Revoke its certificates. The source is turned away already, so whoever is interrupted here types it again."""
    authority = open_ca(ca, passphrase_file)
    identity = Identity(authority.site, Role.AGENT, source)
    with recorded(ca, "ca.revoke", str(identity)):
        return [each.serial for each in authority.revoke(identity=identity)]
