"""Who types: a user whom permissions keep out hears so, and never that there is nothing; root hears what it left."""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import drengine.ownership
from drengine.cli.main import app
from drengine.model.errors import ACCESS_DENIED
from drengine.terminal import main
from tools.documents import import_everything

STRANGER = 65534
LOOKING = (
    ("status", "--store", "@store"),
    ("points", "--store", "@store"),
    ("source", "list", "--store", "@store"),
    ("grant", "list", "--store", "@store"),
    ("branches", "--store", "@store"),
    ("keys", "status", "--store", "@store"),
    ("audit", "show", "@store"),
    ("audit", "verify", "@store"),
    ("runs", "--state", "@state", "--store", "@store"),
    ("run", "show", "20261123T081500-shop-4f2a", "--state", "@state", "--store", "@store"),
    ("runbook", "list", "--state", "@state", "--store", "@store"),
    ("reports", "list", "--state", "@state", "--store", "@store"),
    ("reports", "export", "20261123T081500-shop-4f2a", "--state", "@state", "--store", "@store"),
    ("user", "list", "--state", "@state", "--store", "@store"),
    ("ca", "list", "--ca", "@ca"),
    ("token", "list", "--ca", "@ca"),
    ("identities", "--ca", "@ca"),
)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


@contextmanager
def as_stranger() -> Iterator[None]:
    os.setresuid(STRANGER, STRANGER, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.fixture(scope="module")
def site() -> Iterator[Path]:
    """A store, a state directory and a CA, each of them closed to others."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        assert main(app, ["target", "init", "--store", str(place / "store")]) == 0
        assert main(app, ["runs", "--state", str(place / "state"), "--store", str(place / "store")]) == 0
        assert main(app, ["ca", "init", "--ca", str(place / "ca"), "--site", "main"]) == 0
        import_everything()  # a stranger may not read this Python's modules
        yield place


@as_root
@pytest.mark.parametrize("mode", [0o755, 0o700], ids=["beside", "behind"])
@pytest.mark.parametrize("words", LOOKING, ids=" ".join)
def test_whom_permissions_keep_out_is_told_so_and_whose_it_is(
    site: Path, words: tuple[str, ...], mode: int, capsys: pytest.CaptureFixture[str]
) -> None:
    site.chmod(mode)
    capsys.readouterr()
    with as_stranger():
        code = main(app, [word.replace("@", f"{site}/") for word in words])
    said = capsys.readouterr()
    assert said.out == ""
    if code in (98, 185):  # the registry, the accounts: errors of their own
        assert "Permission denied" in said.err
    else:
        assert code == ACCESS_DENIED.exit_code, said
        assert "belongs to root, and nobody may not" in said.err


@as_root
def test_root_that_makes_a_store_outside_the_services_place_is_warned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drengine.ownership, "SERVICE_USER", pwd.getpwuid(STRANGER).pw_name)
    assert main(app, ["target", "init", "--store", str(tmp_path / "roots")]) == 0
    assert f"chown -R nobody: {tmp_path}/roots" in capsys.readouterr().err
    (tmp_path / "services").mkdir()
    os.chown(tmp_path / "services", STRANGER, STRANGER)
    assert main(app, ["target", "init", "--store", str(tmp_path / "services/store")]) == 0
    assert "chown" not in capsys.readouterr().err
    assert (tmp_path / "services/store/STORE").stat().st_uid == STRANGER
