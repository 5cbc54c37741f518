"""The metrics endpoint under strangers: floods, silence, two scrapes at once, figures that fail."""

from __future__ import annotations

import logging
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager

import pytest

from drengine.model.errors import DrengineError
from drengine.telemetry import Family, Kind, Metrics, MetricsEndpoint, Sample
from drengine.telemetry.endpoint import METRICS_ADDRESS, REQUESTS_MAX

LAG = Family("lag_seconds", Kind.GAUGE, "Lag.")


@contextmanager
def serving(metrics: Metrics, host: str = "127.0.0.1") -> Iterator[int]:
    endpoint = MetricsEndpoint(host, 0, metrics, not_ready=lambda: "")
    try:
        yield endpoint.port
    finally:
        endpoint.close()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def get(port: int, path: str = "/metrics", host: str = "127.0.0.1") -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_who_comes_beyond_the_limit_is_turned_away_and_served_when_the_others_are_gone() -> None:
    with serving(Metrics((LAG,), lambda: [Sample(LAG, 1)])) as port:
        silent = [connect(port) for _ in range(REQUESTS_MAX)]
        assert _ask(port) == 0, "one request more than the limit was served"
        for each in silent:
            each.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            while each.recv(4096):
                pass
            each.close()
        # The slot is given back just after the connection closes, so ask until a slot is free.
        answers = (_ask(port) for _ in range(1000))
        assert any(answer == 200 for answer in answers)


def _ask(port: int) -> int:
    try:
        return get(port)[0]
    except OSError:
        return 0


def test_figures_that_fail_are_an_error_to_the_scraper_and_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fail = [True]

    def gauges() -> Iterable[Sample]:
        if fail[0]:
            raise RuntimeError("dictionary changed size during iteration")
        return [Sample(LAG, 3)]

    with serving(Metrics((LAG,), gauges)) as port:
        with caplog.at_level(logging.ERROR):
            status, body = get(port)
        assert status == 500
        assert b"dictionary" not in body
        assert "could not be gathered" in caplog.text
        fail[0] = False
        assert b"drengine_lag_seconds 3.0" in get(port)[1]


def test_two_scrapes_never_gather_at_once() -> None:
    inside, most = 0, 0
    guard = threading.Lock()
    both = threading.Event()

    def gauges() -> Iterable[Sample]:
        nonlocal inside, most
        with guard:
            inside += 1
            most = max(most, inside)
        both.wait(0.2)
        with guard:
            inside -= 1
        return [Sample(LAG, 1)]

    with serving(Metrics((LAG,), gauges)) as port:
        scrapers = [threading.Thread(target=get, args=(port,)) for _ in range(4)]
        for each in scrapers:
            each.start()
        for each in scrapers:
            each.join()
    assert most == 1


def test_a_query_is_ignored_and_the_banner_says_little() -> None:
    with serving(Metrics((LAG,), lambda: [Sample(LAG, 1)])) as port, closing(connect(port)) as client:
        client.sendall(b"GET /metrics?name[]=x HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.0 200")
    assert b"Python" not in answer


def test_a_scraper_that_leaves_in_the_middle_prints_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    big = [Family(f"f{number}_bytes", Kind.GAUGE, "x" * 10_000) for number in range(1000)]
    with serving(Metrics(big, lambda: ())) as port:
        with closing(connect(port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            client.recv(10)
        for each in threading.enumerate():
            if "process_request_thread" in each.name:
                each.join(30)
        assert get(port, "/healthz")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
def test_it_listens_on_an_ipv6_address() -> None:
    try:
        with closing(socket.socket(socket.AF_INET6)) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with serving(Metrics((LAG,), lambda: [Sample(LAG, 1)]), "::1") as port:
        assert get(port, host="[::1]")[0] == 200


@pytest.mark.parametrize("host", ["203.0.113.1", "no-such-host.invalid"])
def test_an_address_that_is_not_ours_is_named(host: str) -> None:
    with pytest.raises(DrengineError) as caught:
        MetricsEndpoint(host, 9, Metrics((), lambda: ()), not_ready=lambda: "")
    assert caught.value.kind is METRICS_ADDRESS
    assert host in caught.value.message
