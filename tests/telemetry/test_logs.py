"""What a peer says can't forge a log line, and a log that can't be written can't end the service."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drengine.telemetry import setup_logging
from drengine.telemetry.logs import JsonFormatter, TextFormatter


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("drengine.x", logging.WARNING, "f", 1, "%s", (message,), None)
    vars(made).update(fields)
    return made


@given(st.text(), st.text())
def test_whatever_a_peer_says_stays_on_one_line_without_control_characters(said: str, name: str) -> None:
    text = TextFormatter().format(record(said, peer=name))
    assert text.isprintable(), ascii(text)
    assert len(text.splitlines()) == 1
    line = JsonFormatter().format(record(said, peer=name))
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["message"] == said


def test_a_field_can_not_pose_as_what_the_line_itself_says() -> None:
    line = json.loads(
        JsonFormatter().format(record("hello", level="debug", time="1970", logger="other", source="shop"))
    )
    assert (line["level"], line["logger"], line["source"]) == ("warning", "drengine.x", "shop")
    assert line["time"] != "1970"


def test_an_exception_stays_inside_its_json_line() -> None:
    try:
        int("two\nlines")
    except ValueError:
        made = record("failed", exc_info=sys.exc_info())
    line = JsonFormatter().format(made)
    assert "\n" not in line
    assert "\nValueError: " in json.loads(line)["exception"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")  # noqa: PTH110
def test_a_log_on_a_full_disk_does_not_end_the_process() -> None:
    program = (
        "from drengine.telemetry import setup_logging; import logging; setup_logging(form='json');"
        "logging.getLogger('x').error('lost'); print('alive')"
    )
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=full, check=False, timeout=60
        )
    assert done.stdout == b"alive\n"


def test_logs_go_to_standard_error_as_json_when_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    before, level, loud = logging.getLogger().handlers[:], logging.getLogger().level, logging.raiseExceptions
    try:
        setup_logging(level="warning")
        logging.getLogger("drengine.y").info("not said")
        logging.getLogger("drengine.y").warning("said", extra={"source": "shop"})
    finally:
        logging.getLogger().handlers[:] = before
        logging.getLogger().setLevel(level)
        logging.raiseExceptions = loud
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["source"] == "shop"
