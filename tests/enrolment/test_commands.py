"""Enrolment as it is typed, with the authority as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drengine.cli.main import app
from drengine.terminal import main
from drengine_agent.cli.main import commands as agent_app
from tests.control.site import free_port

Types = Callable[..., str]


@pytest.fixture
def types(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Types:
    monkeypatch.setenv("DRENGINE_CA", str(tmp_path / "ca"))

    def typed(*words: str, code: int = 0) -> str:
        commands = agent_app if words[0] == "drengine-agent" else app
        found = main(commands, list(words[1:]) if words[0] == "drengine-agent" else list(words))
        told = capsys.readouterr()
        assert found == code, told.err
        return told.err if code else told.out

    return typed


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., int]]:
    running: list[subprocess.Popen[bytes]] = []

    def start(**environment: str) -> int:
        port = free_port()
        words = ("ca", "serve", "--ca", str(tmp_path / "ca"), "--host", "127.0.0.1", "--listen", f"127.0.0.1:{port}")
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "drengine.cli.main", *words], stderr=log, env={**os.environ, **environment}
            )
        running.append(process)
        deadline = time.monotonic() + 30
        while b"is ready" not in (tmp_path / "log").read_bytes():
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.02)
        return port

    yield start
    for process in running:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_three_commands_bring_a_host_in(types: Types, serve: Callable[..., int], tmp_path: Path) -> None:
    types("ca", "init")
    assert "ca serve" in types("token", "create", "--role", "agent", "--name", "shop", code=4)
    port = serve()
    token = types("token", "create", "--role", "agent", "--name", "shop-*", "--ttl", "1h", "--uses", "2").strip()
    told = json.loads(
        types("drengine-agent", "enrol", "--token", token, "--name", "shop-1", "--to", str(tmp_path / "to"), "--json")
    )
    assert told["identity"] == "drengine://main/agent/shop-1"
    assert Path(told["key"]).stat().st_mode & 0o777 == 0o600
    listed = json.loads(types("token", "list", "--json"))
    assert [(each["used"], each["uses"], each["state"]) for each in listed] == [(1, 2, "valid")]
    assert token not in json.dumps(listed) and f"127.0.0.1:{port}" not in json.dumps(listed)
    assert "revoked" in types("token", "revoke", listed[0]["id"])
    again = ("drengine-agent", "enrol", "--token", token, "--name", "shop-2", "--to", str(tmp_path / "other"))
    assert "(token-revoked)" in types(*again, code=5)
    assert types("token", "list", "--json") == "[]\n"
    assert "no token" in types("token", "revoke", "nope", code=4)
    (known,) = (each for each in json.loads(types("identities", "--json")) if each["role"] == "agent")
    assert (known["name"], known["state"], known["last_seen"]) == ("shop-1", "valid", None)
    assert "shop-1" in types("identities")


def test_the_passphrase_may_be_a_credential_of_systemd(
    types: Types, serve: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "ca-passphrase").write_text("correct horse\n")
    types("ca", "init", "--passphrase-file", str(credentials / "ca-passphrase"))
    assert "passphrase" in types("ca", "crl", code=3)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "nowhere"))
    assert "passphrase" in types("ca", "crl", code=3)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    assert types("ca", "crl").startswith("-----BEGIN X509 CRL")
    serve()
    token = types("token", "create", "--role", "host", "--name", "recovery-1").strip()
    monkeypatch.setenv("DRENGINE_TOKEN", token)
    types("drengine-agent", "enrol", "--name", "recovery-1", "--to", str(tmp_path / "to"))
    (credentials / "ca-passphrase").write_text("")
    assert "empty" in types("ca", "crl", code=3)


def test_mistakes_are_told(types: Types, tmp_path: Path) -> None:
    types("ca", "init")
    where = ("--authority", "127.0.0.1:1")
    assert "names or addresses" in types("token", "create", "--role", "target", "--name", "x", *where, code=4)
    assert "no token makes" in types("token", "create", "--role", "authority", "--name", "x", *where, code=4)
    types("token", "create", "--role", "agent", "--name", "x", "--ttl", "long", *where, code=2)
    types("token", "create", "--role", "admin", "--name", "x", *where, code=2)
    token = types("token", "create", "--role", "agent", "--name", "x", *where).strip()
    assert "peer-unreachable" in types("enrol", "--token", token, "--name", "x", "--to", str(tmp_path / "to"), code=23)
    assert "token-malformed" in types("enrol", "--token", token[:-1], "--name", "x", code=5)
    begun = json.loads(types("ca", "rollover", "--json"))
    assert begun["step"] == "begun"
