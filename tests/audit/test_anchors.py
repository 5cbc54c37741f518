"""Anchors reach a syslog and a web server, wait for one that is away, and hold nobody up."""

from __future__ import annotations

import http.client
import http.server
import json
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from drengine.audit import AuditLog
from drengine.audit.anchors import RETRY_SECONDS_MAX, WAITING_MAX, Anchoring, Sender
from drengine.audit.auditing import Auditing
from drengine.audit.config import AuditOptions
from drengine.audit.sinks import Message, Syslog, Webhook, sinks_of
from drengine.audit.verify import read_anchors, read_entries, verify
from drengine.config import BAD_CONFIG, Address, parse
from drengine.identity.authority import Authority
from drengine.identity.keys import new_key, write_key
from drengine.identity.names import Identity
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from tests.clock import ManualClock

MESSAGE = Message("12" * 16, 7, "ab" * 32, 1_700_000_000_000_000_000)


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[Any]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Web(http.server.ThreadingHTTPServer):
    """Answers each request with the next status, and keeps what it was sent."""

    def __init__(self, *statuses: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses = list(statuses)
        self.bodies: list[str] = []
        self.headers: list[Any] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/anchors?for=drengine"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Web

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.server.headers.append((self.path, self.headers))
        status = self.server.statuses.pop(0) if self.server.statuses else 204
        self.send_response(status)
        if status == 302:
            self.send_header("Location", self.server.url)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


def received(over: str) -> tuple[Address, Callable[[], bytes], socket.socket]:
    kind = socket.SOCK_DGRAM if over == "udp" else socket.SOCK_STREAM
    listener = socket.socket(socket.AF_INET, kind)
    listener.bind(("127.0.0.1", 0))
    if over == "udp":
        return Address(*listener.getsockname()), lambda: listener.recv(4096), listener
    listener.listen()

    def take() -> bytes:
        taken, _ = listener.accept()
        with taken, taken.makefile("rb") as file:
            return file.read()

    return Address(*listener.getsockname()), take, listener


@pytest.mark.parametrize("over", ["udp", "tcp"])
def test_syslog_over_the_network(over: str) -> None:
    address, take, listener = received(over)
    with listener:
        Syslog(address, over).send(MESSAGE)
        line = take().decode()
    if over == "tcp":
        length, _, line = line.partition(" ")
        assert int(length) == len(line)
    head, _, said = line.partition(" - ")
    assert head.split()[:2] == ["<109>1", "2023-11-14T22:13:20.000000Z"]
    assert said == f"audit log={MESSAGE.log} number=7 hash={MESSAGE.hash}"
    (anchor,) = read_anchors(line)
    assert (anchor.log, anchor.number, anchor.hash) == (MESSAGE.log, 7, MESSAGE.hash)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_syslog_of_this_host(tmp_path: Path, kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(str(tmp_path / "log"))
        if kind is socket.SOCK_STREAM:
            listener.listen()
        Syslog(Address(path=str(tmp_path / "log")), "tcp").send(MESSAGE)
        taken = listener.accept()[0] if kind is socket.SOCK_STREAM else listener
        assert read_anchors(taken.recv(4096).decode())[0].number == 7
        taken.close()


def test_a_webhook_gets_json_and_its_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret-token\n")
    with serving(Web(200)) as web:
        Webhook(web.url, None, tmp_path / "token").send(MESSAGE)
    ((path, headers),) = web.headers
    assert (path, headers["Authorization"]) == ("/anchors?for=drengine", "Bearer s3cret-token")
    told = json.loads(web.bodies[0])
    assert (told["log"], told["number"], told["hash"]) == (MESSAGE.log, 7, MESSAGE.hash)
    assert read_anchors(web.bodies[0])[0].hash == MESSAGE.hash


@pytest.mark.parametrize("status", [302, 401, 500])
def test_what_a_webhook_does_not_take_was_not_taken(status: int) -> None:
    with serving(Web(status)) as web:
        with pytest.raises(OSError, match=str(status)):
            Webhook(web.url, None, None).send(MESSAGE)
        assert len(web.bodies) == 1, "a redirect is not followed"


def test_a_webhook_over_tls_is_who_its_certificate_says(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", "main")
    key = new_key()
    issued = authority.issue(Identity.parse("drengine://main/broker/web"), key.public_key(), hosts=("127.0.0.1",))
    (tmp_path / "both.pem").write_bytes(write_key(key) + issued.certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    web = Web()
    web.socket = context.wrap_socket(web.socket, server_side=True)
    with serving(web):
        url = web.url.replace("http:", "https:")
        Webhook(url, tmp_path / "ca/ca.pem", None).send(MESSAGE)
        with pytest.raises(ssl.SSLError):
            Webhook(url, None, None).send(MESSAGE)
    assert len(web.bodies) == 1


def test_an_answer_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the sender goes on before whoever broke it off does: headers that end early are well-formed."""
    monkeypatch.setattr("drengine.audit.sinks.ANSWER_SECONDS", 0.5)
    stopping, told = threading.Event(), threading.Event()
    shutdown = socket.socket.shutdown

    def shut_and_linger(self: socket.socket, how: int) -> None:
        shutdown(self, how)
        if isinstance(threading.current_thread(), threading.Timer):
            told.wait(30)

    class Drip(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"HTTP/1.1 200 OK\r\n")
            while not stopping.wait(0.05):
                try:
                    self.request.sendall(b"X")
                except OSError:
                    return

    monkeypatch.setattr(socket.socket, "shutdown", shut_and_linger)
    with serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Drip)) as server:
        try:
            with pytest.raises(OSError, match="too long"):
                Webhook(f"http://127.0.0.1:{server.server_address[1]}/", None, None).send(MESSAGE)
        finally:
            told.set()
            stopping.set()


def test_a_connection_that_took_all_the_time_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would break it off any more."""
    monkeypatch.setattr("drengine.audit.sinks.ANSWER_SECONDS", 0.0)
    connect = http.client.HTTPConnection.connect

    def late(self: http.client.HTTPConnection) -> None:
        for each in threading.enumerate():
            if isinstance(each, threading.Timer):
                each.join()
        connect(self)

    monkeypatch.setattr(http.client.HTTPConnection, "connect", late)
    with serving(Web()) as web, pytest.raises(OSError, match="too long"):
        Webhook(web.url, None, None).send(MESSAGE)
    assert web.bodies == []


def record(log: AuditLog, count: int = 1) -> None:
    for _ in range(count):
        log.record(who="person:ann", did="run.begin")


def test_anchors_go_by_time_and_by_number(tmp_path: Path) -> None:
    clock = ManualClock()
    log = AuditLog.open(tmp_path)
    with serving(Web()) as web:
        sender = Sender(tmp_path, Webhook(web.url, None, None), seconds=60, entries=10, clock=clock)

        def numbers() -> list[int]:
            sender.work()
            return [json.loads(each)["number"] for each in web.bodies]

        assert numbers() == []
        record(log)
        assert numbers() == [1], "the first at once"
        record(log)
        assert numbers() == [1]
        clock.advance(60)
        assert numbers() == [1, 2]
        clock.advance(600)
        assert numbers() == [1, 2], "only what is new"
        record(log, 10)
        assert numbers() == [1, 2, 12]
        record(log)
        sender.work(at_once=True)
        assert numbers() == [1, 2, 12, 13]
    checked = verify(tmp_path, read_anchors("\n".join(web.bodies)))
    assert (checked.broken, checked.anchors) == ("", 4)


def test_what_is_away_is_tried_again_ever_more_seldom_and_then_gets_all(tmp_path: Path) -> None:
    clock = ManualClock()
    log = AuditLog.open(tmp_path)
    with serving(Web(*[500] * 12)) as web:
        sender = Sender(tmp_path, Webhook(web.url, None, None), seconds=60, entries=10, clock=clock)
        for _ in range(60):
            record(log)
            sender.work()
            clock.advance(60)
        assert 12 < len(web.bodies) < 85
        for _ in range(10):
            sender.work()
            clock.advance(RETRY_SECONDS_MAX)
        assert sorted({json.loads(each)["number"] for each in web.bodies}) == list(range(1, 61))
    assert sender.unsent == 0


def test_what_waits_is_bounded(tmp_path: Path) -> None:
    clock = ManualClock()
    log = AuditLog.open(tmp_path)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        sender = Sender(
            tmp_path,
            Webhook(f"http://127.0.0.1:{closed.getsockname()[1]}/", None, None),
            seconds=1,
            entries=1,
            clock=clock,
        )
        for _ in range(WAITING_MAX + 50):
            record(log)
            sender.work()
    assert (sender.unsent, len(sender._waiting)) == (WAITING_MAX + 50, WAITING_MAX)


def test_a_sink_that_hangs_holds_nobody_up(tmp_path: Path) -> None:
    hanging, taken = threading.Event(), threading.Event()

    class Hangs:
        name = "hangs"

        def send(self, _: Message) -> None:
            taken.set()
            hanging.wait()

    log = AuditLog.open(tmp_path)
    with serving(Web()) as web:
        record(log)
        anchoring = Anchoring(tmp_path, [Hangs(), Webhook(web.url, None, None)], seconds=0.01, entries=1)
        assert taken.wait(30)
        record(log, 20)
        deadline = time.monotonic() + 30
        while not web.bodies and time.monotonic() < deadline:
            time.sleep(0.01)
        hanging.set()
        anchoring.close()
        assert json.loads(web.bodies[-1])["number"] == 21


def test_somebody_who_cuts_the_log_is_found_out_by_what_was_received(tmp_path: Path) -> None:
    log = AuditLog.open(tmp_path / "audit")
    with serving(Web()) as web:
        sender = Sender(tmp_path / "audit", Webhook(web.url, None, None), seconds=60, entries=1)
        for _ in range(5):
            record(log)
            sender.work()
    *_, third, _, _ = read_entries(tmp_path / "audit")
    file = tmp_path / "audit/000000000001.log"
    file.write_bytes(file.read_bytes()[: third.head.end])
    (tmp_path / "audit/head").write_bytes(third.head.encode())
    assert verify(tmp_path / "audit").broken == ""
    assert verify(tmp_path / "audit", read_anchors("".join(web.bodies))).broken_number == 4


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"webhook": "http://example.com/"}, "https"),
        ({"webhook": "https://ann:x@example.com/"}, "without a user"),
        ({"webhook": "ftp://127.0.0.1/"}, "https"),
        ({"syslog": "nowhere"}, "no address"),
        ({"anchor_interval": "0s"}, "more than 0"),
        ({"anchor_entries": 0}, "more than 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(given: dict[str, Any], fault: str) -> None:
    with pytest.raises(DrengineError, match=fault) as caught:
        parse(AuditOptions, given)
    assert caught.value.kind is BAD_CONFIG


def test_sinks_are_those_that_are_configured() -> None:
    assert sinks_of(AuditOptions()) == []
    both = parse(AuditOptions, {"syslog": "unix:/dev/log", "webhook": "https://a.example/x"})
    assert [each.name for each in sinks_of(both)] == ["syslog", "webhook"]


def test_a_daemon_records_refuses_and_anchors(tmp_path: Path) -> None:
    with serving(Web()) as web:
        options = parse(AuditOptions, {"webhook": web.url, "anchor_interval": "1h", "keep": "1d"})
        auditing = Auditing(tmp_path, options, SystemClock())
        auditing.did("target.start")
        auditing.refusals.note(who="somebody", did="ingest.hello", error="x")
        auditing.refusals.note(who="somebody", did="ingest.hello", error="x")
        auditing.close()
        assert auditing.unsent() == {"webhook": 0}
    assert sum(line.entry.times for line in read_entries(tmp_path) if line.entry.error) == 2
    assert json.loads(web.bodies[-1])["number"] == verify(tmp_path).last


def test_a_daemon_goes_on_where_it_can_not_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    auditing = Auditing(tmp_path, AuditOptions(), SystemClock())
    (tmp_path / "head").unlink()
    (tmp_path / "head").mkdir()
    auditing.did("target.reload")
    auditing.close()
    assert "target.reload" in caplog.text
