"""Metrics are true at the moment of the scrape; the endpoint and the logs are what tools expect."""

from __future__ import annotations

import json
import logging
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from drengine.model.errors import DrengineError
from drengine.telemetry import Family, Kind, Metrics, MetricsEndpoint, Sample, notify
from drengine.telemetry.logs import JsonFormatter, TextFormatter

LAG = Family("lag_seconds", Kind.GAUGE, "Lag.", ("source",))
SENT = Family("sent_bytes_total", Kind.COUNTER, "Sent.")
ACK = Family("ack_seconds", Kind.HISTOGRAM, "Ack.", ("source",))


def test_gauges_are_asked_for_at_each_scrape() -> None:
    lag = [1.0]
    metrics = Metrics((LAG, SENT, ACK), lambda: [Sample(LAG, lag[0], ("shop",))])
    assert b'drengine_lag_seconds{source="shop"} 1.0' in metrics.render()
    lag[0] = 7.0
    assert b'drengine_lag_seconds{source="shop"} 7.0' in metrics.render()


def test_counters_and_histograms_add_up() -> None:
    metrics = Metrics((LAG, SENT, ACK), lambda: ())
    metrics.count(SENT, 5)
    metrics.count(SENT, 6)
    metrics.observe(ACK, 0.02, ("shop",))
    text = metrics.render().decode()
    assert "drengine_sent_bytes_total 11.0" in text
    assert 'drengine_ack_seconds_count{source="shop"} 1.0' in text


def test_what_is_gone_is_not_shown_with_what_was_counted_of_it() -> None:
    cuts = Family("cuts_total", Kind.COUNTER, "Cuts.", ("kind", "source"))
    metrics = Metrics((cuts, SENT), lambda: ())
    metrics.count(SENT, 5)
    for source in ("shop", "till"):
        metrics.count(cuts, 3, ("quiet", source))
    metrics.keep("source", {"shop"})
    text = metrics.render().decode()
    assert "till" not in text
    assert 'drengine_cuts_total{kind="quiet",source="shop"} 3.0' in text
    assert "drengine_sent_bytes_total 5.0" in text


def test_what_something_else_counts_is_caught_up_with() -> None:
    counted = [Sample(SENT, 5)]
    metrics = Metrics((SENT,), lambda: (), lambda: counted)
    assert "drengine_sent_bytes_total 5.0" in metrics.render().decode()
    counted[0] = Sample(SENT, 7)
    assert "drengine_sent_bytes_total 7.0" in metrics.render().decode()
    counted[0] = Sample(SENT, 2)  # it began anew: what a counter has counted stays
    assert "drengine_sent_bytes_total 9.0" in metrics.render().decode()


def test_no_time_of_creation_is_shown() -> None:
    metrics = Metrics((SENT, ACK), lambda: ())
    metrics.observe(ACK, 0.02, ("shop",))
    metrics.count(SENT, 1)
    assert "_created" not in metrics.render().decode()


def _get(port: int, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_the_endpoint_serves_metrics_and_probes_and_stops() -> None:
    ready = [False]
    endpoint = MetricsEndpoint(
        "127.0.0.1", 0, Metrics((SENT,), lambda: ()), not_ready=lambda: "" if ready[0] else "starting"
    )
    try:
        assert _get(endpoint.port, "/healthz") == (200, b"ok\n")
        assert _get(endpoint.port, "/readyz") == (503, b"not ready: starting\n")
        ready[0] = True
        assert _get(endpoint.port, "/readyz")[0] == 200
        assert b"drengine_sent_bytes_total" in _get(endpoint.port, "/metrics")[1]
        assert _get(endpoint.port, "/etc/passwd")[0] == 404
        with pytest.raises(DrengineError, match="metrics-address"):
            MetricsEndpoint("127.0.0.1", endpoint.port, Metrics((), lambda: ()), not_ready=lambda: "")
    finally:
        endpoint.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", endpoint.port), timeout=1)


def test_a_log_line_is_one_json_object_with_its_fields() -> None:
    record = logging.LogRecord("drengine.x", logging.WARNING, "f", 1, "lost %s\nand found", ("it",), None)
    record.__dict__["source"] = "shop"
    text = JsonFormatter().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["level"], line["message"], line["source"]) == ("warning", "lost it\nand found", "shop")
    assert "source=shop" in TextFormatter().format(record)


def test_the_service_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        assert notify("READY=1")
        assert manager.recv(64) == b"READY=1"
    path.unlink()
    assert not notify("READY=1")
