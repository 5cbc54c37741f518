"""Checks and references against those who mean harm: servers that never end, redirects, hosts that lie."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drengine.failover.steps.errors import UNSAFE_REFERENCE
from drengine.failover.steps.kinds import step_kinds
from drengine.failover.steps.notify import NotifyStep
from drengine.failover.steps.step import StepResult
from drengine.failover.steps.texts import environment_of, filled
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.transport.web import BODY_BYTES_MAX, Deadline, get
from tests.failover.steps.context import context, planned

KINDS = step_kinds()
ENOUGH_SECONDS = 20.0
"""More than any check here may take, far less than what its server would."""


@contextlib.contextmanager
def serving(answer: Callable[[socket.socket, bytes], None]) -> Iterator[int]:
    """A server that hands each connection, with what it sent first, to a thread of its own; gives its port."""
    ended = threading.Event()

    def serve(stream: socket.socket) -> None:
        with stream, contextlib.suppress(OSError):
            stream.settimeout(60)
            answer(stream, stream.recv(1 << 16))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while not ended.is_set():
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
        ended.set()
        listening.shutdown(socket.SHUT_RDWR)


def drip(stream: socket.socket, _: bytes) -> None:
    """Headers at once, then a byte of the body whenever the client would give up waiting for one."""
    stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        stream.sendall(b".")
        time.sleep(0.05)


def drip_headers(stream: socket.socket, _: bytes) -> None:
    stream.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        stream.sendall(b".")
        time.sleep(0.05)


def flood(stream: socket.socket, _: bytes) -> None:
    stream.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        stream.sendall(b"x" * (1 << 20))


def silent(stream: socket.socket, _: bytes) -> None:
    while stream.recv(1 << 16):
        pass


async def outcome(kind: str, settings: object, seconds: float = 1.0) -> tuple[StepResult[object], float]:
    step = planned(KINDS[kind], {kind: settings}, timeout_seconds=seconds, every_seconds=1.0)
    began = time.monotonic()
    result = await KINDS[kind].act(step, context(clock=SystemClock()))
    return result, time.monotonic() - began


@pytest.mark.parametrize("answer", [drip, drip_headers, silent])
async def test_a_check_ends_when_its_time_is_up_however_slowly_it_is_answered(
    answer: Callable[[socket.socket, bytes], None],
) -> None:
    with serving(answer) as port:
        result, seconds = await outcome("http", {"url": f"http://127.0.0.1:{port}/"})
    assert not result.ok
    assert "no whole answer" in result.message or "timed out" in result.message
    assert seconds < ENOUGH_SECONDS


async def test_the_thread_of_a_check_that_was_cut_off_ends_as_well() -> None:
    before = {each.ident for each in threading.enumerate()}
    with serving(drip) as port:
        await outcome("http", {"url": f"http://127.0.0.1:{port}/"})
        ended = time.monotonic() + ENOUGH_SECONDS
        while left := [t for t in threading.enumerate() if t.name.startswith("check-") and t.ident not in before]:
            assert time.monotonic() < ended, left
            await asyncio.sleep(0.01)


def test_a_body_without_end_is_read_to_its_bound() -> None:
    with serving(flood) as port:
        assert len(get(f"http://127.0.0.1:{port}/", {}, Deadline(ENOUGH_SECONDS)).body) == BODY_BYTES_MAX


async def test_a_database_that_never_answers_holds_nothing_up() -> None:
    with serving(silent) as port:
        dsn = f"postgresql://app@127.0.0.1:{port}/db?sslmode=disable"
        result, seconds = await outcome("sql", {"dsn": dsn, "query": "select 1"})
    assert not result.ok
    assert seconds < ENOUGH_SECONDS


async def test_a_query_that_never_ends_is_cut_off(tmp_path: Path) -> None:
    query = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"
    result, seconds = await outcome("sql", {"dsn": f"sqlite:///{tmp_path}/db", "query": query})
    assert not result.ok
    assert seconds < ENOUGH_SECONDS


def redirecting(to: str, status: int = 302) -> Callable[[socket.socket, bytes], None]:
    def answer(stream: socket.socket, _: bytes) -> None:
        stream.sendall(f"HTTP/1.1 {status} R\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode())

    return answer


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_headers_of_a_check_are_told_to_no_other_server(status: int) -> None:
    heard: list[bytes] = []

    def note(stream: socket.socket, request: bytes) -> None:
        heard.append(request)
        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    headers = {"Authorization": "Bearer hunter2", "Cookie": "hunter2", "X-Api-Key": "hunter2"}
    with serving(note) as other, serving(redirecting(f"http://127.0.0.1:{other}/x", status)) as port:
        assert get(f"http://127.0.0.1:{port}/", headers, Deadline(ENOUGH_SECONDS)).body == b"ok"
    assert len(heard) == 1
    assert b"hunter2" not in heard[0]
    assert heard[0].startswith(b"GET /x HTTP/1.1\r\n")


def test_a_redirect_at_the_same_server_keeps_them() -> None:
    heard: list[bytes] = []

    def answer(stream: socket.socket, request: bytes) -> None:
        heard.append(request)
        if request.startswith(b"GET /in"):
            stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        else:
            redirecting("/in")(stream, request)

    with serving(answer) as port:
        get(f"http://127.0.0.1:{port}/", {"Authorization": "Bearer hunter2"}, Deadline(ENOUGH_SECONDS))
    assert [b"hunter2" in each for each in heard] == [True, True]


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/", "//", "gopher://x/"])
def test_a_redirect_to_what_is_no_web_address_is_refused(to: str) -> None:
    with serving(redirecting(to)) as port, pytest.raises((ValueError, OSError)):
        get(f"http://127.0.0.1:{port}/", {}, Deadline(ENOUGH_SECONDS))


def test_redirects_in_a_circle_end() -> None:
    with serving(redirecting("/")) as port, pytest.raises(ValueError, match="redirects"):
        get(f"http://127.0.0.1:{port}/", {}, Deadline(ENOUGH_SECONDS))


async def test_a_notification_is_not_redirected() -> None:
    with serving(redirecting("http://127.0.0.1:9/")) as port:
        step = planned(KINDS["notify"], {"notify": {"url": f"http://127.0.0.1:{port}/"}}, timeout_seconds=10)
        result = await NotifyStep().act(step, context())
    assert not result.ok
    assert "302" in result.message


UNSAFE = {
    "an option": ("${shop.x}", "--upload-file=/etc/shadow"),
    "a short option": ("${shop.x}", "-o"),
    "a negative number": ("${shop.x}", -1),
    "an escape sequence": ("${shop.x}", "a\x1b[2J"),
    "a line": ("${shop.x}", "a\nb"),
    "hidden": ("${shop.x}", "a\u202eb"),
    "long": ("${shop.x}", "a" * 5000),
    "a list": ("${shop.x}", ["a"]),
    "a mapping": ("${shop.x}", {"a": 1}),
    "nothing": ("${shop.x}", None),
    "another host": ("http://${shop.x}/health", "evil.example/"),
    "another host by user": ("http://${shop.x}/health", "10.0.0.5@evil.example"),
    "another host by query": ("http://${shop.x}/health", "evil.example?"),
    "another host by backslash": ("http://${shop.x}/health", "evil.example\\"),
    "no host": ("http://${shop.x}/health", ""),
    "another path": ("http://shop/${shop.x}/health", "../admin"),
    "another query": ("http://shop/?id=${shop.x}", "1&admin=1"),
    "a fragment": ("http://shop/${shop.x}/health", "a#"),
    "in an option's address": ("--url=http://${shop.x}/", "evil.example/a"),
    "a database": ("postgresql://check@${shop.x}/shop", "evil.example/other?"),
    "a database's option": ("postgresql://check@db/${shop.x}", "shop?host=evil.example"),
    "a statement": ("select '${shop.x}'", "'; drop table orders --"),
    "a shell": ("ping ${shop.x}", "1; rm -rf /"),
    "a shell's substitution": ("ping ${shop.x}", "$(id)"),
}


@pytest.mark.parametrize("case", UNSAFE)
def test_what_a_host_told_becomes_nothing_else(case: str) -> None:
    text, value = UNSAFE[case]
    with pytest.raises(DrengineError, match=r"\$\{shop\.x\}") as raised:
        filled(text, {"shop": {"x": value}})
    assert raised.value.kind is UNSAFE_REFERENCE
    assert raised.value.message.isprintable()


@pytest.mark.parametrize(
    ("text", "value", "wanted"),
    [
        ("http://${shop.x}/", "10.0.0.5:8080", "http://10.0.0.5:8080/"),
        ("http://${shop.x}:80/", "[fd00::5]", "http://[fd00::5]:80/"),
        ("http://${shop.x}/", "web-1.shop.example", "http://web-1.shop.example/"),
        ("http://h:${shop.x}/", 8080, "http://h:8080/"),
        ("http://h/v/${shop.x}/y", "1.2.3-rc_1", "http://h/v/1.2.3-rc_1/y"),
        ("${shop.x}", "/dev/loop3", "/dev/loop3"),
        ("${shop.x}", "a b; $(c)", "a b; $(c)"),  # an argument of its own: no shell
        ("kill ${shop.x}", [12, 13], "kill [12, 13]"),
        ("${shop.x}", True, "True"),
    ],
)
def test_what_can_do_no_harm_is_filled_in(text: str, value: object, wanted: str) -> None:
    assert filled(text, {"shop": {"x": value}}) == wanted


@given(st.text(), st.sampled_from(["http://${shop.x}/", "http://${shop.x}:80/a?b#c", "https://user@${shop.x}/"]))
def test_no_value_moves_an_address_to_where_a_browser_would_see_another_host(value: str, text: str) -> None:
    try:
        url = filled(text, {"shop": {"x": value}})
    except DrengineError:
        return
    parts = urlsplit(url)
    before, after = text.split("${shop.x}")
    assert (parts.hostname or "") in value.lower()
    assert url.startswith(before)
    assert url.endswith(after)
    assert parts.path == "/" + after.partition("/")[2].partition("?")[0]


def test_what_a_host_told_makes_no_other_variable() -> None:
    told = {"address": "x", "a=b": "1", "LD_PRELOAD": "1", "nul": "a\0b", "": "1"}
    found = environment_of(
        planned(KINDS["command"], {"command": ["true"]}), context(results={"launch:shop": {"details": told}})
    )
    assert {name for name in found if name.startswith("DRENGINE_SHOP")} == {"DRENGINE_SHOP_ADDRESS"}
