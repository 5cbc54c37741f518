"""`drengine target init`: make the store that a target will use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from drengine.cli.chosen import TargetConfigOption, store_of
from drengine.cli.common import JsonOption
from drengine.ownership import service_warnings
from drengine.store.store import Store
from drengine.target.config import load_target_config
from drengine.target.key import keks_of
from drengine.terminal import emit_json, note

app = typer.Typer(add_completion=False)


@app.command()
def init(
    config: TargetConfigOption = None,
    store: Annotated[Path | None, typer.Option("--store", "-s", envvar="DRENGINE_STORE", help="The store.")] = None,
    json: JsonOption = False,
) -> None:
    """Make an empty store, once, in a missing or empty directory; the target itself never makes one."""
    store = store if config else store_of(store)
    loaded = load_target_config(config, {"store": str(store)} if store is not None else {})
    with Store.create(loaded.store, keks=keks_of(loaded.encryption, loaded.store)) as made:
        identity = made.identity.hex()
    for line in service_warnings(loaded.store):
        note(line)
    if json:
        emit_json({"store": str(loaded.store), "store_id": identity})
    else:
        print(f'made a store in {loaded.store}; a target that may use no other one has store_id = "{identity}"')
