"""REST beyond loopback: TLS, tokens, passwords and roles, by real clients."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drengine.failover.config import load_orchestrator_config
from drengine.identity.authority import Authority
from drengine.model.errors import DrengineError
from drengine.people.passwords import hash_password
from tests.console.rig import ASKING, RUNBOOK, Api, served
from tests.console.tls import issue

PASSWORD = "correct horse battery"


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Api]:
    with served(tmp_path / "site", tls=issue(tmp_path / "ca", tmp_path / "rest")) as api:
        yield api


def curl(api: Api, path: str, *more: str, token: str = "") -> tuple[int, Any]:
    given = ["--cacert", str(api.engine.config.rest_tls.certificate.parent / "ca.pem")]  # type: ignore[union-attr]
    given += ["-H", f"Authorization: Bearer {token}"] if token else []
    url = f"https://localhost:{api.port}/api/v1{path}"
    done = subprocess.run(
        ["curl", "-s", "-w", "\n%{http_code}", *given, *more, url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status or 0), json.loads(body) if body.startswith(("{", "[")) else body


def send(body: Any, method: str = "POST") -> list[str]:
    return ["-X", method, "-H", "Content-Type: application/json", "--data", json.dumps(body)]


pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")


def test_a_person_signs_in_orders_and_signs_out(secured: Api) -> None:
    secured.engine.door.accounts.change("bob", password=hash_password(PASSWORD))
    assert curl(secured, "/health")[0] == 200
    assert curl(secured, "/runs")[1]["id"] == "not-signed-in"
    status, refused = curl(secured, "/login", *send({"name": "bob", "password": "wrong"}))
    assert (status, refused["id"]) == (401, "sign-in-failed")
    status, signed = curl(secured, "/login", *send({"name": "bob", "password": PASSWORD}))
    assert (status, signed["name"]) == (200, "bob")
    token = signed["token"]
    assert curl(secured, "/me", token=token)[1]["roles"] == ["admin", "operator"]
    assert curl(secured, "/runbooks/shop", *send({"text": ASKING}, "PUT"), token=token)[0] == 200
    status, run = curl(secured, "/runs", *send({"mode": "drill", "runbook": "shop"}), token=token)
    assert (status, run["started_by"], run["started_proof"][:6]) == (201, "bob", "login:")
    assert curl(secured, "/logout", "-X", "POST", token=token)[0] == 200
    assert curl(secured, "/runs", token=token)[0] == 401


def test_tls_does_not_believe_that_the_same_host_is_somebody(secured: Api) -> None:
    """Root asks, from the same host, and is nobody without a token."""
    for forwarded in ([], ["-H", "X-Forwarded-Proto: http"], ["-H", "X-Forwarded-For: [unix:0]"]):
        status, refused = curl(secured, "/runs", *forwarded)
        assert (status, refused["id"]) == (401, "not-signed-in"), forwarded


def test_plain_http_and_old_tls_get_nowhere(secured: Api) -> None:
    with socket.create_connection(("127.0.0.1", secured.port), 10) as plain:
        plain.sendall(b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert not plain.recv(1000).startswith(b"HTTP/")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", secured.port), 10) as raw, pytest.raises((ssl.SSLError, OSError)):
        old.wrap_socket(raw)


def test_a_renewed_certificate_counts_from_the_next_connection_on(secured: Api, tmp_path: Path) -> None:
    def serial() -> str:
        with socket.create_connection(("127.0.0.1", secured.port), 10) as raw:
            context = ssl.create_default_context(cafile=str(tmp_path / "rest/ca.pem"))
            with context.wrap_socket(raw, server_hostname="localhost") as connection:
                return str(connection.getpeercert()["serialNumber"])  # type: ignore[index]

    before = serial()
    issue(tmp_path / "ca", tmp_path / "rest", authority=Authority(tmp_path / "ca"))
    assert serial() != before
    (tmp_path / "rest/key.pem").write_text("half a fi")
    assert serial() != before


def test_rest_beyond_loopback_needs_a_certificate(tmp_path: Path) -> None:
    file = tmp_path / "orchestrator.toml"
    file.write_text('store = "/s"\nrest = "0.0.0.0:7443"\n')
    with pytest.raises(DrengineError, match="needs \\[rest_tls\\]"):
        load_orchestrator_config(file, {})


def test_guessing_passwords_ends(secured: Api) -> None:
    answers = [curl(secured, "/login", *send({"name": "bob", "password": f"guess {n}"}))[0] for n in range(12)]
    assert answers == [401] * 10 + [429] * 2


ROLE_OF = {"viewer": "vic", "operator": "op", "approver": "app", "admin": "adm"}
MATRIX = {
    # door: what each of viewer, operator, approver, admin gets
    ("GET", "/runs", None): (200, 200, 200, 200),
    ("GET", "/runbooks/shop/plan?mode=drill", None): (200, 200, 200, 200),
    ("GET", "/sources", None): (200, 200, 200, 200),
    ("GET", "/reports", None): (200, 200, 200, 200),
    ("PUT", "/runbooks/shop", "text"): (403, 403, 403, 200),
    ("POST", "/runs", "drill"): (403, 201, 403, 201),
    ("POST", "/runs", "failover"): (403, 201, 403, 201),
    ("POST", "/runs/{run}/approve", "approve"): (403, 403, 422, 422),
    ("POST", "/runs/{run}/abort", "{}"): (403, 409, 403, 409),
    ("POST", "/runs/{run}/rollback", "{}"): (403, 409, 403, 409),
    ("POST", "/runs/{run}/resume", "force"): (403, 409, 403, 409),
    ("POST", "/runs/{run}/commit", "{}"): (403, 409, 403, 409),
}


def test_every_role_at_every_door(secured: Api) -> None:
    accounts = secured.engine.door.accounts
    secured.engine.registry.save_runbook("shop", RUNBOOK)
    tokens = {}
    for role, name in ROLE_OF.items():
        if accounts.find(name) is None:
            accounts.add(name, (role,))  # type: ignore[arg-type]
        tokens[role] = accounts.issue(name, 600)[1]
    status, run = curl(secured, "/runs", *send({"mode": "drill", "runbook": "shop"}), token=tokens["operator"])
    assert status == 201
    finished(secured, run["run"])
    bodies: dict[str, Any] = {
        "text": {"text": RUNBOOK},
        "drill": {"mode": "drill", "runbook": "shop"},
        "failover": {"mode": "failover", "runbook": "shop"},
        "approve": {"digest": "0" * 64},
        "{}": {},
        "force": {"force": True},
    }
    for (method, path, body), expected in MATRIX.items():
        asked = send(bodies[body], method) if body else []
        got = []
        for role, name in ROLE_OF.items():
            status, said = curl(secured, path.replace("{run}", run["run"]), *asked, token=tokens[role])
            got.append(status)
            if status == 403:
                assert said["id"] == "not-permitted" and name in said["message"]
            if status == 201:
                finished(secured, said["run"])
                if body == "failover":
                    curl(secured, f"/runs/{said['run']}/rollback", *send({}), token=tokens["admin"])
                    finished(secured, said["run"], "rolled-back")
        assert tuple(got) == expected, (method, path)
        assert curl(secured, path.replace("{run}", run["run"]), *asked)[0] == 401


def finished(api: Api, run: str, outcome: str = "") -> None:
    import time

    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = api.engine.registry.run(run)
        if found.state == "finished" and (not outcome or found.outcome == outcome):
            return
        time.sleep(0.02)
    raise AssertionError(found)


def test_a_user_of_this_host_has_the_roles_of_the_account_of_his_name(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can become another user")
    with served(tmp_path / "site") as api:
        api.engine.door.accounts.add("nobody", ("viewer",))  # type: ignore[arg-type]
        for path, expected in (("runs", 200), ("me", 200)):
            url = f"http://localhost:{api.port}/api/v1/{path}"
            done = subprocess.run(
                [
                    "setpriv",
                    "--reuid=65534",
                    "--regid=65534",
                    "--clear-groups",
                    "curl",
                    "-s",
                    "-w",
                    "\n%{http_code}",
                    url,
                ],
                capture_output=True,
                text=True,
                check=True,
                timeout=30,
            )
            body, _, status = done.stdout.rpartition("\n")
            assert int(status) == expected, body
        assert json.loads(body) == {"name": "nobody", "proof": "unix:65534", "roles": ["viewer"]}
