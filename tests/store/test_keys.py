"""Where the key-encryption key comes from, and what is refused."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from drengine.config import parse
from drengine.crypt.errors import KEY_MISSING, KEY_UNUSABLE, KEY_WRONG
from drengine.crypt.kek import KeyEncryptionKey, KeyEncryptionKeys
from drengine.crypt.keyring import Keyring, pack_keyring, parse_keyring
from drengine.crypt.options import EncryptionOptions, load_keks, parse_key, write_key_file
from drengine.model.errors import DrengineError
from drengine.target.key import keks_of

SECRET = bytes(range(7, 39))


def key_file(path: Path, data: bytes = SECRET, mode: int = 0o400) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def refused(options: EncryptionOptions, store: Path) -> str:
    with pytest.raises(DrengineError) as caught:
        load_keks(options, store)
    assert caught.value.kind is KEY_UNUSABLE
    assert SECRET.hex() not in caught.value.message
    return caught.value.message


def test_a_key_is_bytes_or_digits(tmp_path: Path) -> None:
    wanted = KeyEncryptionKey(SECRET).id
    for data in (SECRET, SECRET.hex().encode(), b"\n " + SECRET.hex().upper().encode() + b"\n"):
        options = EncryptionOptions(key_file=key_file(tmp_path / "key", data, 0o600))
        found = load_keks(options, tmp_path / "store")
        assert found is not None and found.newest.id == wanted


def test_a_key_that_is_made_is_read_and_nobody_elses(tmp_path: Path) -> None:
    made = write_key_file(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o400
    found = load_keks(EncryptionOptions(key_file=tmp_path / "key"), tmp_path / "store")
    assert found is not None and found.newest.id == made.id
    with pytest.raises(DrengineError) as caught:
        write_key_file(tmp_path / "key")
    assert caught.value.kind is KEY_UNUSABLE


@pytest.mark.parametrize("mode", [0o404, 0o444, 0o402, 0o420, 0o666, 0o401])
def test_a_key_that_others_may_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    options = EncryptionOptions(key_file=key_file(tmp_path / "key", mode=mode))
    assert "open to others" in refused(options, tmp_path / "store")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        SECRET[:-1],
        SECRET + b"\n",
        SECRET.hex()[:-1].encode(),
        b"x" * 32,
        bytes(32),
        b"0" * 64,
        b"y" * 5000,
    ],
)
def test_what_is_no_key_is_refused(tmp_path: Path, data: bytes) -> None:
    refused(EncryptionOptions(key_file=key_file(tmp_path / "key", data)), tmp_path / "store")


def test_a_key_that_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    assert "can't be read" in refused(EncryptionOptions(key_file=tmp_path / "key"), tmp_path / "store")
    refused(EncryptionOptions(key_file=tmp_path), tmp_path / "store")
    os.mkfifo(tmp_path / "pipe", 0o600)
    refused(EncryptionOptions(key_file=tmp_path / "pipe"), tmp_path / "store")


def test_a_key_in_the_store_is_refused_also_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    inside = key_file(tmp_path / "store" / "key")
    (tmp_path / "link").symlink_to(inside)
    for path in (inside, tmp_path / "link", tmp_path / "x" / ".." / "store" / "key"):
        (tmp_path / "x").mkdir(exist_ok=True)
        assert "lies in the store" in refused(EncryptionOptions(key_file=path), tmp_path / "store")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away")
def test_another_users_key_is_refused(tmp_path: Path) -> None:
    path = key_file(tmp_path / "key")
    os.chown(path, 12345, 12345)
    assert "belongs to user 12345" in refused(EncryptionOptions(key_file=path), tmp_path / "store")


def test_a_credential_comes_from_systemds_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = EncryptionOptions(credential="store.key")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert "systemd did not start this" in refused(options, tmp_path / "store")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    refused(options, tmp_path / "store")
    key_file(tmp_path / "store.key")
    found = load_keks(options, tmp_path / "store")
    assert found is not None and found.newest.id == KeyEncryptionKey(SECRET).id
    with pytest.raises(DrengineError, match="letters, digits"):
        parse(EncryptionOptions, {"credential": "../key"})


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_a_command_prints_the_key_and_gets_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PASSWORD", "secret")
    code = f"import os; assert 'MY_PASSWORD' not in os.environ; print('{SECRET.hex()}')"
    found = load_keks(EncryptionOptions(key_command=python(code)), tmp_path / "store")
    assert found is not None and found.newest.id == KeyEncryptionKey(SECRET).id


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise SystemExit(3)", "ended with 3"),
        (f"print('{SECRET.hex()}'); raise SystemExit(1)", "ended with 1"),
        ("import time; time.sleep(60)", "took too long"),
        ("print('no key')", "neither 32"),
        (f"print('{SECRET.hex()}', 'and more')", "neither 32"),
        ("pass", "neither 32"),
    ],
)
def test_a_command_that_gives_no_key_is_refused(tmp_path: Path, code: str, says: str) -> None:
    options = EncryptionOptions(key_command=python(code), key_command_seconds=1.0 if "sleep" in code else 30.0)
    assert says in refused(options, tmp_path / "store")


def test_a_command_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "ended with 127" in refused(EncryptionOptions(key_command=("/no/such/program",)), tmp_path / "store")


def test_two_ways_to_the_key_are_a_mistake(tmp_path: Path) -> None:
    both = EncryptionOptions(key_file=tmp_path / "key", credential="key")
    older = EncryptionOptions(previous_key_files=("key",))
    for options in (both, older):
        with pytest.raises(DrengineError) as caught:
            load_keks(options, tmp_path)
        assert caught.value.kind.id == "bad-config"
    assert load_keks(EncryptionOptions(), tmp_path) is None


def test_the_environment_names_a_key_where_no_file_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRENGINE_KEY_FILE", raising=False)
    assert keks_of(None, tmp_path / "store") is None
    monkeypatch.setenv("DRENGINE_KEY_FILE", str(key_file(tmp_path / "key")))
    found = keks_of(EncryptionOptions(), tmp_path / "store")
    assert found is not None and found.newest.id == KeyEncryptionKey(SECRET).id


def test_a_keyring_opens_for_whom_it_was_made_and_nobody_else() -> None:
    kek, other = KeyEncryptionKey(SECRET), KeyEncryptionKey(SECRET[::-1])
    ring = Keyring([]).with_new(5).with_new(6)
    data = pack_keyring(ring, kek, b"store keys/web1")
    assert ring.keys[0].secret not in data
    assert parse_keyring(data, KeyEncryptionKeys(other, [kek]), b"store keys/web1", "it") == ring
    for keks, about, kind in (
        (KeyEncryptionKeys(other), b"store keys/web1", KEY_WRONG),
        (KeyEncryptionKeys(kek), b"store keys/web2", KEY_WRONG),
        (KeyEncryptionKeys(kek), b"other keys/web1", KEY_WRONG),
    ):
        with pytest.raises(DrengineError) as caught:
            parse_keyring(data, keks, about, "it")
        assert caught.value.kind is kind
    for at in range(len(data)):
        flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(DrengineError) as caught:
            parse_keyring(flipped, KeyEncryptionKeys(kek), b"store keys/web1", "it")
        assert caught.value.kind is KEY_MISSING
    for length in range(0, len(data), 7):
        with pytest.raises(DrengineError):
            parse_keyring(data[:length], KeyEncryptionKeys(kek), b"store keys/web1", "it")


def test_secrets_are_not_shown() -> None:
    key = Keyring([]).with_new(5).keys[0]
    assert key.secret.hex() not in repr(key) and repr(key.secret) not in repr(key)
    assert repr(key.secret) not in repr(Keyring([key]))
    assert parse_key(SECRET, "it").id == KeyEncryptionKey(SECRET).id != SECRET.hex()
