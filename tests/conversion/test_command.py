"""`drengine convert`: told on a branch that is thrown away, or done on one that is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drengine.cli.main import app
from drengine.store.store import Store
from drengine.terminal import main
from tests.conversion.mini import make_mini, needs_helper
from tests.conversion.sources import make_source, point_digest

pytestmark = [pytest.mark.timeout(900), pytest.mark.campaign]


def typed(capsys: pytest.CaptureFixture[str], store: Path, *words: str) -> tuple[int, Any]:
    code = main(app, ["convert", "shop", *words, "--store", str(store), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads((out or err).strip().splitlines()[-1])


def test_a_dry_run_leaves_no_branch_and_a_branch_is_converted_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs_helper()
    store = tmp_path / "store"
    point = make_source(store, make_mini(tmp_path / "disk.raw"), "bios")
    before = point_digest(store, point)

    code, told = typed(capsys, store, "--dry-run")
    assert code == 0 and told["dry_run"] and told["system"] == "Mini Linux"
    assert "/etc/fstab" in {each["path"] for each in told["changes"]}
    with Store.open(store) as opened:
        assert not [each for each in opened.branches("shop") if each.role == "drill" and not each.closed]
        number = opened.create_branch(point, role="drill", label="mine").number

    code, done = typed(capsys, store, "--branch", str(number))
    assert code == 0
    assert {each["path"] for each in done["changes"]} == {each["path"] for each in told["changes"]}
    assert typed(capsys, store, "--branch", str(number))[1]["changes"] == []
    assert typed(capsys, store, "--dry-run", "--firmware", "uefi")[0] == 174
    assert point_digest(store, point) == before


def test_a_branch_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_source(tmp_path / "store", make_mini(tmp_path / "disk.raw"), "bios")
    code, told = typed(capsys, tmp_path / "store")
    assert code != 0 and told["error"] == "unknown-branch"
