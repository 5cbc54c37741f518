"""Commands that ask an orchestrator that runs: the same orders and answers, by whom the kernel or a token proves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drengine.cli import desk
from drengine.cli.main import app
from drengine.console.client import Client
from drengine.model.errors import DrengineError
from drengine.people.roles import Role
from drengine.terminal import main
from tests.console import test_faces as faces
from tests.console.rig import ASKING, Api, served
from tests.console.test_faces import ORDERS, drilled, failed_by_hand, failed_over, kept, unfenced, waiting, written
from tests.console.tls import issue

CASES: list[tuple[Callable[[Api], str], str]] = [
    *((kept, name) for name in ("drill", "failover", "drill of nothing", "drill that is held", "abort nothing")),
    *((waiting, name) for name in ("approve", "approve as somebody else", "abort", "abort without a role", "drill")),
    *((drilled, name) for name in ("resume", "rollback", "commit")),
    *((failed_over, name) for name in ("rollback", "commit", "failback that discards")),
    (written, "rollback"),
    (written, "rollback with losses"),
    (unfenced, "resume by force"),
    (failed_by_hand, "resume"),
    (failed_by_hand, "resume what was done"),
]


class Remote(faces.Typing):
    """Commands to the orchestrator's socket; no engine is opened here."""

    def __init__(self, api: Api, monkeypatch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        super().__init__(api, monkeypatch, capture)

        def opened(*_: object) -> None:
            raise AssertionError("an engine was opened")

        monkeypatch.setattr(desk, "open_orders", opened)
        monkeypatch.setenv("DRENGINE_URL", f"unix:{api.engine.config.socket_path}")


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[tuple[Api, Api]]:
    with served(tmp_path / "typed") as one, served(tmp_path / "sent") as other:
        yield one, other


@pytest.mark.parametrize(("story", "name"), CASES, ids=[f"{story.__name__}: {name}" for story, name in CASES])
def test_an_order_to_one_that_runs_is_decided_as_any_other(
    story: Callable[[Api], str],
    name: str,
    worlds: tuple[Api, Api],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    typing = Remote(worlds[0], monkeypatch, capsys)
    assert ORDERS[name]
    faces.test_an_order_is_decided_in_one_way(story, name, worlds, typing, tmp_path)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Api]:
    with served(tmp_path / "site") as api:
        yield api


def curl(api: Api, user: int, method: str, path: str, body: object = None) -> tuple[int, Any]:
    """As a user of this host, who reaches the socket and no file."""
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    ask = ["curl", "-s", "-w", "\n%{http_code}", "--unix-socket", str(api.engine.config.socket_path), "-X", method]
    ask += ["-H", "Content-Type: application/json", "--data", json.dumps(body)] if body is not None else []
    done = subprocess.run(
        [*become, *ask, f"http://localhost/api/v1{path}"], capture_output=True, text=True, timeout=30, check=True
    )
    said, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(said)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_kernel_proves_who_asks_and_four_eyes_are_two_users(running: Api, tmp_path: Path) -> None:
    for folder in running.engine.config.socket_path.parents:
        if folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)  # others reach the socket
    running.engine.door.accounts.add("nobody", (Role.APPROVER, Role.OPERATOR))
    running.do("PUT", "/runbooks/shop", {"text": ASKING.replace("[ann]", "['role:approver', 'role:admin']")})
    status, run = curl(running, 0, "POST", "/runs", {"mode": "failover", "runbook": "shop"})
    assert (status, run["started_by"], run["started_proof"]) == (201, "root", "unix:0")
    waiting = running.until(run["run"], lambda found: found["waiting_for"])
    approval = {"digest": waiting["digest"]}
    for user, expected, id in ((0, 403, "self-approval"), (65533, 403, "not-permitted")):
        status, refused = curl(running, user, "POST", f"/runs/{run['run']}/approve", approval)
        assert (status, refused["id"]) == (expected, id)
    assert curl(running, 65533, "GET", "/runs")[0] == 403, "a stranger does not even look"
    status, approved = curl(running, 65534, "POST", f"/runs/{run['run']}/approve", approval)
    assert (status, approved["by"], approved["proof"]) == (200, "nobody", "unix:65534")
    assert running.finished(run["run"])["outcome"] == "completed"
    report = running.get(f"/reports/{run['run']}")
    assert ("approve", "nobody", "unix:65534", waiting["digest"]) in {
        (each["did"], each["by"], each["proof"], each["digest"]) for each in report["people"]
    }


LISTEN = """
import os, socket
os.setuid(65534)
listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
connection, _ = listening.accept()
print(connection.recv(1000), flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_stranger_who_listens_on_the_port_gets_no_token(running: Api) -> None:
    """Any user may, while the orchestrator is down."""
    told = Client(f"http://127.0.0.1:{running.port}", token=running.tokens["bob"]).ask("GET", "/me")
    assert told["name"] == "bob"
    stranger = subprocess.Popen([sys.executable, "-c", LISTEN], stdout=subprocess.PIPE, text=True)
    assert stranger.stdout
    port = int(stranger.stdout.readline())
    with pytest.raises(DrengineError, match="a process of user 65534 answers there"):
        Client(f"http://127.0.0.1:{port}", token=running.tokens["bob"]).ask("GET", "/me")
    assert stranger.communicate(timeout=30)[0].strip() == "b''"


def test_commands_ask_over_tls_with_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(tmp_path / "site", tls=issue(tmp_path / "ca", tmp_path / "rest")) as api:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("DRENGINE_URL", f"https://localhost:{api.port}")
        monkeypatch.setenv("DRENGINE_CACERT", str(tmp_path / "rest/ca.pem"))
        monkeypatch.delenv("DRENGINE_TOKEN", raising=False)
        password = tmp_path / "password"
        password.write_text("correct horse battery\n")
        monkeypatch.delenv("DRENGINE_CONFIG", raising=False)
        state = ["--state", str(api.engine.config.state)]
        assert main(app, ["runs"]) == 180
        assert main(app, ["user", "password", "bob", "--password-file", str(password), *state]) == 0
        assert main(app, ["login", "bob", "--password-file", str(password)]) == 0
        assert (tmp_path / "home/drengine/logins.json").stat().st_mode & 0o777 == 0o600
        book = tmp_path / "shop.yaml"
        book.write_text(ASKING.replace("    before:\n      - approval: {prompt: Go?, by: [ann]}\n", ""))
        capsys.readouterr()
        assert main(app, ["drill", str(book)]) == 0
        out = capsys.readouterr().out
        assert "launch:shop: done" in out and "drill" in out
        assert main(app, ["runs"]) == 0
        assert main(app, ["logout"]) == 0
        assert main(app, ["runs"]) == 180
        monkeypatch.delenv("DRENGINE_CACERT")
        capsys.readouterr()
        assert main(app, ["runs"]) == 189
        assert "certificate" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://192.0.2.1:7443", "ftp://x", "localhost:7443", "https://"])
def test_no_token_goes_out_in_the_clear(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(app, ["runs", "--url", url]) == 121
    assert "is no address of an orchestrator" in capsys.readouterr().err
