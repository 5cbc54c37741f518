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
from drengine.crypt.options import read_key_file
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
    ("runs", "--config", "@state/orchestrator.toml"),
    ("target", "check-config", "@store/target.toml"),
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


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of a host on which the services run as a user of their own: `nobody` here."""
    monkeypatch.setattr(drengine.ownership, "SERVICE_USER", pwd.getpwuid(STRANGER).pw_name)
    for each in (tmp_path, *tmp_path.parents[:-2]):
        each.chmod(0o755)
    return tmp_path


@as_root
def test_root_that_makes_a_store_outside_the_services_place_is_warned(
    service: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(app, ["target", "init", "--store", str(service / "roots")]) == 0
    assert f"{service}/roots belongs to root and is closed to nobody" in capsys.readouterr().err
    (service / "services").mkdir()
    os.chown(service / "services", STRANGER, STRANGER)
    assert main(app, ["target", "init", "--store", str(service / "services/store")]) == 0
    assert "warning" not in capsys.readouterr().err
    assert (service / "services/store/STORE").stat().st_uid == STRANGER


@as_root
@pytest.mark.parametrize(("owner", "group"), [(0, STRANGER), (STRANGER, STRANGER)], ids=["etc", "services"])
def test_a_key_that_root_makes_in_the_services_folder_serves_both(service: Path, owner: int, group: int) -> None:
    place = service / "etc"
    place.mkdir(mode=0o750)
    os.chown(place, owner, group)
    (service / "data").mkdir()
    os.chown(service / "data", STRANGER, STRANGER)
    key, store = place / "store.key", service / "data/store"
    assert main(app, ["keys", "generate", str(key)]) == 0
    config = place / "target.toml"
    config.write_text(f'store = "{store}"\n[encryption]\nkey_file = "{key}"\n')
    assert main(app, ["target", "init", "--config", str(config)]) == 0
    roots = read_key_file(key, store).id
    os.setresgid(STRANGER, STRANGER, 0)
    try:
        with as_stranger():
            assert read_key_file(key, store).id == roots
    finally:
        os.setresgid(0, 0, 0)
    assert not key.stat().st_mode & 0o037


@as_root
@pytest.mark.parametrize("closed", ["target.toml", "store.key"])
def test_check_config_says_what_the_service_can_not_read(
    service: Path, closed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config, key = service / "target.toml", service / "store.key"
    config.write_text(f'store = "{service}/store"\n[encryption]\nkey_file = "{key}"\n')
    key.write_text("0" * 64)
    for each in (config, key):
        each.chmod(0o600 if each.name == closed else 0o640)
        os.chown(each, 0, STRANGER)
    for words in (["target"], ["orchestrator"]):
        assert main(app, [*words, "check-config", str(config)]) == 0
        warned = capsys.readouterr().err
        assert f"the services run as nobody, but {service / closed} belongs to root" in warned
        assert warned.count("warning") == 1
