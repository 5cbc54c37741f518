"""`drengine ca`, as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drengine.cli.main import app
from drengine.terminal import main
from drengine.transport.files import TlsFiles
from drengine.transport.tls_check import Side, check_files


class Person:
    """Somebody at a prompt."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys

    def types(self, *words: str, code: int = 0) -> str:
        found = main(app, ["ca", *words, "--ca", str(self.folder / "ca")])
        told = self._capsys.readouterr()
        assert found == code, told.err
        return told.err if code else told.out


@pytest.fixture
def person(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Person:
    return Person(tmp_path, capsys)


def files(folder: Path) -> TlsFiles:
    return TlsFiles(folder / "certificate.pem", folder / "key.pem", folder / "ca.pem")


def test_a_ca_in_ten_minutes(person: Person, tmp_path: Path) -> None:
    person.types("init", "--site", "main")
    person.types("issue", "target/outpost", "--host", "127.0.0.1", "--to", str(tmp_path / "outpost"))
    person.types("issue", "agent/shop", "--to", str(tmp_path / "shop"), "--valid", "12h")
    now = (tmp_path / "ca/index.json").stat().st_mtime
    assert check_files(files(tmp_path / "outpost"), Side.SERVER, now=now, address="127.0.0.1").doubts == ()
    assert check_files(files(tmp_path / "shop"), Side.CLIENT, now=now).doubts == ()
    assert (tmp_path / "shop/key.pem").stat().st_mode & 0o777 == 0o600
    key = (tmp_path / "shop/key.pem").read_bytes()
    assert "already" in person.types("issue", "agent/shop", "--to", str(tmp_path / "shop"), code=4)
    person.types("renew", "agent/shop", "--to", str(tmp_path / "shop"))
    assert (tmp_path / "shop/key.pem").read_bytes() != key
    assert check_files(files(tmp_path / "shop"), Side.CLIENT, now=now).doubts == ()
    assert person.types("list").count("drengine://main/agent/shop") == 2
    told = json.loads(person.types("revoke", "agent/shop", "--json"))
    assert [each["state"] for each in told["revoked"]] == ["revoked"] * 2
    listed = json.loads(person.types("list", "--json"))
    assert [(each["identity"], each["state"]) for each in listed] == [
        ("drengine://main/target/outpost", "valid"),
        ("drengine://main/agent/shop", "revoked"),
        ("drengine://main/agent/shop", "revoked"),
    ]
    assert person.types("crl").startswith("-----BEGIN X509 CRL-----")


def test_a_passphrase_comes_from_a_file_or_the_environment(
    person: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("correct horse\n")
    person.types("init", "--passphrase-file", str(secret))
    issue = ("issue", "agent/shop", "--to", str(tmp_path / "shop"))
    assert "DRENGINE_CA_PASSPHRASE" in person.types(*issue, code=3)
    assert not (tmp_path / "shop").exists()
    monkeypatch.setenv("DRENGINE_CA_PASSPHRASE", "correct horse")
    person.types(*issue)
    secret.write_text("")
    assert "empty" in person.types("crl", "--passphrase-file", str(secret), code=3)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("issue", "agent/Shop"), 10),
        (("issue", "admin/shop"), 10),
        (("issue", "shop"), 10),
        (("issue", "drengine://other/agent/shop"), 4),
        (("issue", "target/outpost"), 4),
        (("issue", "agent/shop", "--csr", "/nowhere"), 4),
        (("issue", "agent/shop", "--valid", "long"), 2),
        (("renew", "agent/shop"), 4),
    ],
)
def test_mistakes_are_told_and_issue_nothing(person: Person, tmp_path: Path, words: tuple[str, ...], code: int) -> None:
    person.types("init")
    person.types(*words, "--to", str(tmp_path / "to"), code=code)
    assert not (tmp_path / "to").exists()
    assert json.loads(person.types("list", "--all", "--json")) == []
