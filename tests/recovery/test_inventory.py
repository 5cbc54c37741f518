"""`drengine inventory`: what a server was made of, from the store's directory alone."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from drengine.cli.main import app
from drengine.model.inventory import Inventory, parse_inventory
from drengine.store.store import Store
from drengine.target.errors import SOURCE_NEEDED
from drengine.terminal import main, output
from tests.inventories import SERVER
from tests.recovery.replica import make


@pytest.fixture
def store(tmp_path: Path) -> Path:
    make(tmp_path / "store")
    return tmp_path / "store"


def keep(store: Path, inventory: Inventory) -> None:
    with Store.open(store) as opened:
        opened.keep_inventory("shop", inventory, generation=1)


def shown(capsys: pytest.CaptureFixture[str], store: Path, *words: str, exit_code: int = 0) -> tuple[str, str]:
    assert main(app, ["inventory", *words, "--store", str(store)]) == exit_code
    found = capsys.readouterr()
    return found.out, found.err


def test_it_is_shown_to_people_and_given_to_machines(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(store, SERVER)
    table, said = shown(capsys, store)
    for text in (
        "Debian GNU/Linux 12",
        "16.0 GiB",
        "dm-0 on sda2 on sda",
        "5432/tcp  0.0.0.0  postgres  postgresql@15-main.service",
        "10.0.0.5/24",
        "1: 512.0 MiB, 2: 479.0 GiB",
        "/dev/mapper/vg-root",
    ):
        assert text in table
    assert "2023-11-14 22:13:20" in said and "not replicated" not in table + said
    assert shown(capsys, store, "shop")[0] == table
    assert parse_inventory(shown(capsys, store, "--json")[0].encode()) == SERVER


def test_what_is_not_replicated_is_said(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (*others, last) = SERVER.file_systems
    exposed = msgspec.structs.replace(last, unreplicated=("sdb",))
    disks = (SERVER.disks[0], msgspec.structs.replace(SERVER.disks[1], volume=""))
    keep(store, msgspec.structs.replace(SERVER, file_systems=(*others, exposed), disks=disks))
    table, said = shown(capsys, store)
    assert "not replicated" in table
    assert "/var/lib/postgresql lies on sdb, which is not replicated" in said


def test_a_server_of_which_next_to_nothing_is_known(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(store, Inventory(taken_ns=1))
    assert shown(capsys, store)[0] == "server  shop\n"


def test_there_is_room_for_it_at_any_terminal(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(store, SERVER)
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    for columns in ("40", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        table, _ = shown(capsys, store)
        assert "postgresql@15-main.service" in table and "Services that listen" in table


def test_of_several_sources_one_has_to_be_named(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(store, seed=2, source="bank")
    _, said = shown(capsys, store, exit_code=SOURCE_NEEDED.exit_code)
    assert "[source-needed]" in said and "`drengine inventory SOURCE`" in said
    keep(store, SERVER)
    assert "postgresql@15-main" in shown(capsys, store, "shop")[0]


@pytest.mark.parametrize(
    ("name", "id", "exit_code"), [("shop", "inventory-unknown", 169), ("nobody", "unknown-source", 40)]
)
def test_who_never_told_and_who_is_not_there_are_errors_of_their_own(
    store: Path, capsys: pytest.CaptureFixture[str], name: str, id: str, exit_code: int
) -> None:
    out, said = shown(capsys, store, name, exit_code=exit_code)
    assert f"[{id}]" in said and "hint:" in said and not out
    out, said = shown(capsys, store, name, "--json", exit_code=exit_code)
    assert json.loads(said)["error"] == id
