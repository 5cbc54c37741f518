"""Only this host asks, on purpose, and not too much at once."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from drengine.console.guard import BODY_BYTES_MAX
from drengine.console.serve import CONNECTIONS_MAX, PEER_CONNECTIONS_MAX, STRANGERS_MAX
from drengine.linux.loopback import user_of
from tests.console.rig import PREFIX, RUNBOOK, Api, served
from tests.console.tls import issue


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "evil.example:7443"},
        {"Host": ""},
        {"Host": "[::1"},
        {"Host": "10.0.0.1"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_what_comes_from_elsewhere_is_refused(api: Api, headers: dict[str, str]) -> None:
    for method, path, body in (("GET", "/runs", None), ("PUT", "/runbooks/shop", {"text": RUNBOOK})):
        answer = api.ask(method, path, body, headers=headers)
        assert answer.status in (400, 403)
        assert b"shop" not in answer.body
    assert api.get("/runbooks") == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost:7443", "[::1]:7443", "LOCALHOST"])
def test_loopback_by_any_of_its_names_is_heard(api: Api, host: str) -> None:
    assert api.ask("GET", "/runs", headers={"Host": host, "Origin": f"http://{host}"}).status == 200


@pytest.mark.parametrize(
    "shown", ["", "Bearer", "Bearer ", "Bearer x", "Bearer drengine_00000000_x", "Basic Ym9iOmJvYg==", "Bearer \xff"]
)
def test_what_is_no_proof_changes_nothing(api: Api, shown: str) -> None:
    for method, path, body in (
        ("PUT", "/runbooks/shop", {"text": RUNBOOK}),
        ("POST", "/runbooks/validate", {"text": RUNBOOK}),
        ("POST", "/runs", {"mode": "drill", "runbook": "shop"}),
        ("POST", "/runs/x/abort", {}),
        ("GET", "/runs", None),
    ):
        if not shown:
            continue
        answer = api.ask(method, path, body, by=None, headers={"Authorization": shown})
        assert (answer.status, answer.json["id"]) == (401, "not-signed-in"), (method, path, answer)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert set(answer.json) == {"id", "message", "hint", "exit_code"}
    assert api.get("/runbooks") == []


STRANGER = 65534
FORWARDED = [
    {"X-Forwarded-For": "[unix:0]"},
    {"X-Forwarded-For": "unix:0"},
    {"X-Forwarded-For": "[unix:0]", "X-Forwarded-Proto": "http"},
    {"X-Forwarded-For": "127.0.0.1:1"},
]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("headers", FORWARDED)
def test_who_asks_is_what_the_kernel_says_and_not_what_a_header_says(api: Api, headers: dict[str, str]) -> None:
    """A header that a proxy would set made root of any local user."""
    told = ["curl", "-s", *(f"-H{name}: {value}" for name, value in headers.items())]
    url = f"http://127.0.0.1:{api.port}{PREFIX}/me"
    done = subprocess.run([*told, url], capture_output=True, text=True, timeout=30, check=True, user=STRANGER)
    assert json.loads(done.stdout).get("id") == "not-permitted", done.stdout


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_page_in_a_local_browser_can_not_send_what_it_likes(api: Api, kind: str) -> None:
    """It could send these without being asked first, and the kernel would say that its user asks."""
    raw = json.dumps({"mode": "drill", "runbook": "shop"}).encode()
    api.do("PUT", "/runbooks/shop", {"text": RUNBOOK})
    answer = api.ask("POST", "/runs", raw=raw, by=None, headers={"Content-Type": kind})
    assert answer.status == 403
    assert api.get("/runs") == []


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[" * 200_000,
        b"\xff",
        b"null",
        b"[]",
        b'"x"',
        b"{}",
        b'{"text": 5}',
        b'{"text": "", "more": 1}',
        b"NaN",
    ],
)
def test_a_body_that_is_none_is_an_answer(api: Api, raw: bytes) -> None:
    answer = api.ask("PUT", "/runbooks/shop", raw=raw)
    assert answer.status in (400, 422), answer
    assert answer.json["id"] in ("bad-request", "bad-runbook")


def test_a_body_that_is_too_large_is_refused_whatever_it_says_of_itself(api: Api) -> None:
    honest = http.client.HTTPConnection("127.0.0.1", api.port, timeout=20)
    honest.putrequest("PUT", f"{PREFIX}/runbooks/shop")
    honest.putheader("Content-Type", "application/json")
    honest.putheader("Content-Length", str(BODY_BYTES_MAX + 1))
    honest.endheaders()
    assert honest.getresponse().status == 413
    honest.close()
    with socket.create_connection(("127.0.0.1", api.port), timeout=20) as chunked:
        head = f"PUT {PREFIX}/runbooks/shop HTTP/1.1\r\nHost: localhost\r\n"
        chunked.sendall(f"{head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"x" * (1 << 20)
        sent = 0
        try:
            while sent <= 2 * BODY_BYTES_MAX:
                chunked.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                sent += len(chunk)
        except OSError:
            pass  # it has heard enough
        assert b" 413 " in chunked.recv(1 << 16).split(b"\r\n")[0]
    assert api.get("/health")


def test_every_answer_tells_browsers_to_be_careful(api: Api) -> None:
    for path in ("/runs", "/nothing", "/reports/x/page"):
        headers = api.ask("GET", path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers


ASK = """
import encodings.idna, os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as ask:
    ask.sendall(b"GET /api/v1/runbooks HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n")
    if sys.argv[2] == "closed":
        ask.shutdown(socket.SHUT_WR)
    print(ask.makefile().read())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("side", ["open", "closed"])
def test_another_user_of_the_host_is_not_heard(api: Api, side: str) -> None:
    api.do("PUT", "/runbooks/shop", {"text": RUNBOOK})
    asked = subprocess.run(
        [sys.executable, "-c", ASK, str(api.port), side], capture_output=True, text=True, check=True, timeout=30
    )
    # Whoever has closed his side gets no answer at all.
    assert asked.stdout.startswith(("HTTP/1.1 401", "HTTP/1.1 403")) or (side == "closed" and not asked.stdout.strip())
    assert "simulated" not in asked.stdout


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_the_owner_of_a_connection_is_known_while_it_is_open(family: socket.AddressFamily, host: str) -> None:
    with socket.socket(family) as listening:
        listening.bind((host, 0))
        listening.listen()
        server = listening.getsockname()[:2]
        with socket.socket(family) as asking:
            asking.connect(server)
            client = asking.getsockname()[:2]
            accepted, _ = listening.accept()
            with accepted:
                assert user_of(client, server) == os.geteuid()
                assert user_of((host, 1), server) is None
                asking.close()
                assert user_of(client, server) is None


def test_a_socket_for_ipv6_may_ask_by_ipv4(api: Api) -> None:
    with socket.socket(socket.AF_INET6) as asking:
        asking.connect(("::ffff:127.0.0.1", api.port))
        asking.sendall(b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert asking.recv(100).startswith(b"HTTP/1.1 200")


def test_idle_connections_keep_nobody_out(api: Api) -> None:
    idle = [socket.create_connection(("127.0.0.1", api.port), 10) for _ in range(CONNECTIONS_MAX + 40)]
    slow = [socket.create_connection(("127.0.0.1", api.port), 10) for _ in range(CONNECTIONS_MAX + 40)]
    try:
        for each in slow:
            with contextlib.suppress(OSError):
                each.sendall(b"GET /api/v1/runs HTTP/1.1\r\nX: ")  # and never more
        for _ in range(5):
            assert api.ask("GET", "/runs").status == 200
    finally:
        for each in (*idle, *slow):
            each.close()


def test_tls_connections_that_do_not_hear_their_end_keep_nobody_out(tmp_path: Path) -> None:
    """Each is sent away with TLS's goodbye, and nobody waits for an answer to it."""
    with (
        served(tmp_path / "site", tls=issue(tmp_path / "ca", tmp_path / "tls")) as api,
        contextlib.ExitStack() as stack,
    ):
        context = ssl.create_default_context(cafile=str(tmp_path / "tls/ca.pem"))

        def connected(source: str) -> ssl.SSLSocket:
            plain = socket.create_connection(("127.0.0.1", api.port), 10, (source, 0))
            return context.wrap_socket(plain, server_hostname="localhost")

        for number in range(3 * CONNECTIONS_MAX):
            stack.enter_context(connected(f"127.0.{number + 1}.1"))
        with connected("127.0.0.1") as talk:
            talk.sendall(f"GET {PREFIX}/health HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert talk.recv(100).startswith(b"HTTP/1.1 200")


def test_handshakes_that_never_end_are_as_many_as_may_be(tmp_path: Path) -> None:
    """Those beyond are closed, the oldest of the peer that has most first."""
    with (
        served(tmp_path / "site", tls=issue(tmp_path / "ca", tmp_path / "tls")) as api,
        contextlib.ExitStack() as stack,
    ):
        context = ssl.create_default_context(cafile=str(tmp_path / "tls/ca.pem"))
        other = stack.enter_context(socket.create_connection(("127.0.0.1", api.port), 10, ("127.9.9.9", 0)))
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", api.port), 10, ("127.0.0.2", 0)))
            for _ in range(3 * STRANGERS_MAX)
        ]
        with context.wrap_socket(socket.create_connection(("127.0.0.1", api.port), 10), server_hostname="localhost"):
            pass  # it came last: the others are accepted by now
        for each in silent[: 2 * STRANGERS_MAX]:
            with contextlib.suppress(ConnectionResetError):
                assert each.recv(1) == b""
        with context.wrap_socket(other, server_hostname="localhost") as talk:
            talk.sendall(f"GET {PREFIX}/health HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert talk.recv(100).startswith(b"HTTP/1.1 200")


def test_a_connection_that_is_being_used_is_not_closed_for_others(api: Api) -> None:
    used = http.client.HTTPConnection("127.0.0.1", api.port, timeout=10)
    idle: list[socket.socket] = []
    try:
        for _ in range(6):
            used.request("GET", f"{PREFIX}/runs")
            answer = used.getresponse()
            assert answer.read() is not None
            assert answer.status == 200
            idle += [socket.create_connection(("127.0.0.1", api.port), 10) for _ in range(CONNECTIONS_MAX // 2)]
            assert api.ask("GET", "/runs").status == 200, "it came last, so the idle ones are accepted by now"
    finally:
        for each in (used, *idle):
            each.close()


def test_requests_that_never_end_take_one_peers_share_only(api: Api) -> None:
    """Bodies that are begun and never sent: the peer loses its oldest ones, another address is answered."""
    begun = [socket.create_connection(("127.0.0.1", api.port), 10) for _ in range(2 * PEER_CONNECTIONS_MAX)]
    try:
        for each in begun:
            with contextlib.suppress(OSError):
                head = (
                    f"POST {PREFIX}/runbooks/validate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                )
                each.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        for _ in range(5):
            assert api.ask("GET", "/runs").status == 200, "the same address, a new connection"
        for _ in range(3):
            other = http.client.HTTPConnection("127.0.0.1", api.port, timeout=20, source_address=("127.0.0.2", 0))
            other.request("GET", f"{PREFIX}/health")
            assert other.getresponse().status == 200
            other.close()
    finally:
        for each in begun:
            each.close()


def test_who_guesses_passwords_keeps_nobody_waiting(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, judging = threading.Event(), threading.Semaphore(0)

    def judged(kept: str, password: str) -> bool:
        judging.release()
        stuck.wait(60)
        return False

    monkeypatch.setattr("drengine.people.passwords._fits", judged)
    guess = {"name": "bob", "password": "wrong"}
    guesses = [threading.Thread(target=lambda: api.ask("POST", "/login", guess, by=None)) for _ in range(16)]
    try:
        for each in guesses:
            each.start()
        assert judging.acquire(timeout=30)
        for _ in range(5):
            assert api.ask("GET", "/runs").status == 200
    finally:
        stuck.set()
        for each in guesses:
            each.join(60)
