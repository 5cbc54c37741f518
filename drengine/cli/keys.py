"""`drengine keys`: the keys that a store is encrypted with."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from drengine.audit import recorded
from drengine.cli.common import JsonOption, StoreOption, open_store
from drengine.crypt.errors import KEY_NEEDED
from drengine.crypt.kek import KeyEncryptionKeys
from drengine.crypt.options import read_key_file, write_key_file
from drengine.model.errors import DrengineError
from drengine.ownership import service_warnings
from drengine.store.store import Store
from drengine.target.key import keks_of, s3_of
from drengine.terminal import emit_json, human_age, human_bytes, note, show_table

app = typer.Typer(add_completion=False)

SourceArgument = Annotated[str, typer.Argument(help="The source server.")]


@app.command()
def generate(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The new file.")], json: JsonOption = False
) -> None:
    """Make a key-encryption key in a new file that only its owner may read.

    Keep a copy away from this host: without it nothing in the store can be read."""
    key = write_key_file(path)
    for line in service_warnings(path):
        note(line)
    if json:
        emit_json({"key": key.id, "file": str(path)})
    else:
        print(f"made key {key.id} in {path}; whoever loses it loses the stores that it opens: keep a copy")


@app.command()
def init(store: StoreOption, json: JsonOption = False) -> None:
    """Encrypt what is written to a store from now on; compaction encrypts what is there.

    Stop the target first."""
    keks = _required(store)
    with recorded(store, "keys.init", "store", key=keks.newest.id):
        Store.encrypt(store, keks, storage_options=s3_of(None, store))
    _show_status(store, json=json)


@app.command()
def status(store: StoreOption, json: JsonOption = False) -> None:
    """Show how far a store is encrypted, and under which key.

    The head that it prints, noted elsewhere, tells later whether the store was put back to an earlier state."""
    _show_status(store, json=json)


@app.command("list")
def list_keys(store: StoreOption, json: JsonOption = False) -> None:
    """List the data keys of each source: made when, in use or forgotten."""
    with open_store(store, read_only=True) as opened:
        sources = opened.encryption().sources
    if json:
        emit_json([{"source": source.name, "kek": source.kek, "keys": source.keys} for source in sources])
        return
    now_ns = time.time_ns()
    rows = []
    for source in sources:
        for key in source.keys:
            state = "forgotten" if key.erased_ns else "encrypts" if key is source.keys[-1] else "decrypts"
            rows.append((source.name, key.id, f"{human_age(key.created_ns, now_ns)} ago", state))
    show_table(("source", "data key", "made", "state"), rows, title="Data keys")


@app.command()
def rotate(
    store: StoreOption,
    source: Annotated[str | None, typer.Argument(help="The source server; absent: each that has keys.")] = None,
    json: JsonOption = False,
) -> None:
    """Give a source a new data key for what is written from now on.

    What is there stays readable under the older ones."""
    with open_store(store) as opened:
        names = [source] if source else [each.name for each in opened.encryption().sources if each.keys]
        made = {}
        for name in names:
            with recorded(store, "keys.rotate", name):
                made[name] = opened.rotate_key(name)
    if json:
        emit_json(made)
    for name, key in {} if json else made.items():
        print(f"{name} is encrypted with data key {key} from its next segment on")


@app.command()
def rewrap(
    store: StoreOption,
    previous: Annotated[
        list[Path] | None,
        typer.Option("--previous", help="File with an older key, in which keys may be wrapped still."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Wrap all data keys with the newest key-encryption key.

    No data is written. The older key is not needed afterwards. The newest one is `key_file`; the one before it is in
    `previous_key_files`, or given here."""
    older = [read_key_file(path, store) for path in previous or []]
    keks = _required(store).with_older(older)
    with Store.open(store, keks=keks, storage_options=s3_of(None, store)) as opened:
        with recorded(store, "keys.rewrap", "store", head=opened.head):
            count = opened.rewrap_keys()
        kek = opened.encryption().kek
    if json:
        emit_json({"rewrapped": count, "key": kek})
    else:
        print(f"{count} keyrings were wrapped anew; all are under key {kek}")


@app.command()
def forget(
    source: SourceArgument,
    store: StoreOption,
    confirm: Annotated[str, typer.Option("--confirm", help="The source's name once more.")] = "",
    json: JsonOption = False,
) -> None:
    """Erase a source: forget its data keys for good.

    Nothing of it can be read any more, but from older copies of the store with its `keys` folder."""
    with open_store(store) as opened:
        points = len(opened.points(source))
        if confirm != source:
            raise typer.BadParameter(
                f"{points} points of {source} would be lost for good; to do it: --confirm {source}"
            )
        with recorded(store, "keys.forget", source, points=points, head=opened.head):
            count = opened.erase(source)
    if json:
        emit_json({"source": source, "keys": count, "points": points})
    else:
        print(f"{source} is erased: {count} data keys were forgotten, and its {points} points can't be read any more")


def _required(store: Path) -> KeyEncryptionKeys:
    keks = keks_of(None, store)
    if keks is None:
        raise DrengineError(KEY_NEEDED, "no key-encryption key is named")
    return keks


def _show_status(store: Path, *, json: bool) -> None:
    with open_store(store, may_be_read_only=True) as opened:
        found, head = opened.encryption(), opened.head
    if json:
        emit_json({"key": found.kek, "clear_bytes": found.clear_bytes, "head": head, "sources": found.sources})
        return
    if not found.kek:
        print("the store is in clear")
        return
    print(f"encrypted under key {found.kek}; {human_bytes(found.clear_bytes)} are in clear still")
    print(f"head {head}")
    rows = []
    for source in found.sources:
        state = "KEYS MISSING" if source.missing else str(len(source.keys))
        rows.append(
            (source.name, state, source.kek, human_bytes(source.encrypted_bytes), human_bytes(source.clear_bytes))
        )
    show_table(("source", "data keys", "under key", "encrypted", "in clear"), rows, title="Encryption")
    if any(source.missing for source in found.sources):
        note("sources without their keys are not read, written or compacted: put back the store's `keys` folder")
