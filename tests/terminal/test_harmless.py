"""What comes from elsewhere neither steers a terminal nor hides anything, whoever prints it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drengine.terminal.streams import OutputStream, harmless, styled
from tests.failover.engine.disks import disks_served
from tests.recovery.replica import make

HOSTILE = "\x1b]0;gotcha\x07\x1b[2J\x1b[8mhidden\x1b[0m\x9b31m\x08\x7f\u202egnol\u2066\u200b\r"
RUNBOOK = """\
version: 1
name: shop
sources:
  shop: {launch: {driver: command, settings: {run: [cat, HOSTILE], health: ["false"]}}, fence: {command: ["true"]}}
waves:
  - name: all
    sources: [shop]
"""


def steers(text: str) -> list[str]:
    """Characters that a terminal obeys, or that nobody sees."""
    hidden = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200b\ufeff"
    obeyed = [each for each in text if each not in "\n\t" and unicodedata.category(each) in ("Cc", "Zl", "Zp", "Cs")]
    return [ascii(each) for each in (*obeyed, *text) if each in hidden or each in obeyed]


@given(st.text(st.characters(codec="utf-8")))
def test_nothing_steers_lines_and_tabs_stay_and_ordinary_text_is_as_it_was(text: str) -> None:
    shown = harmless(text)
    assert not steers(shown)
    assert (shown.count("\n"), shown.count("\t")) == (text.count("\n"), text.count("\t"))
    assert harmless(shown) == shown
    if not steers(text) and text.isprintable():
        assert shown == text


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
def test_only_what_draws_gets_past_the_stream(foreign: str, drawn: str) -> None:
    reading, writing = os.pipe()
    stream = OutputStream(writing, None)
    print(foreign[:4000], file=stream, end="")
    print(drawn[:4000], file=styled(stream), end="")
    stream.flush()
    os.close(writing)
    with os.fdopen(reading, "rb") as read:
        assert read.read() == (harmless(foreign[:4000]) + drawn[:4000]).encode()


def seen(words: Sequence[str], *, terminal: bool) -> str:
    """What a command writes to standard output and error."""
    command = [sys.executable, "-m", "drengine.cli.main", *words]
    environment = {**os.environ, "TERM": "xterm-256color", "NO_COLOR": "1"}
    if not terminal:
        done = subprocess.run(command, capture_output=True, env=environment, check=False, timeout=120)
        return (done.stdout + done.stderr).decode()
    mine, theirs = pty.openpty()
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment):
        os.close(theirs)
        drawn = b""
        try:
            while chunk := os.read(mine, 1 << 16):
                drawn += chunk
        except OSError:
            pass  # the other end has closed
    return drawn.decode()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_workloads_last_words_reach_no_terminal_raw(tmp_path: Path, terminal: bool) -> None:
    hostile, book = tmp_path / "hostile", tmp_path / "shop.yaml"
    hostile.write_bytes(HOSTILE.encode())
    book.write_text(RUNBOOK.replace("HOSTILE", str(hostile)))
    make(tmp_path / "store")
    places = ["--store", str(tmp_path / "store"), "--state", str(tmp_path / "state")]
    run = ["--export", f"unix:{tmp_path}/nbd.sock", *places]
    with disks_served(tmp_path / "store", tmp_path / "nbd.sock"):
        said = [seen([command, str(book), *run], terminal=terminal) for command in ("drill", "plan")]
    listed = json.loads(seen(["runs", "--json", *places], terminal=False))
    said.append(seen(["run", "show", listed[0]["run"], *places], terminal=terminal))
    assert "gotcha" in said[0], said[0]
    for text in said:
        for each in ("\x1b]0;", "\x1b[2J", "\x1b[8m", "\x9b", "\x07", "\x08", "\x7f", "\u202e", "\u2066", "\u200b"):
            assert each not in text, ascii(text)
        assert terminal or not steers(text), ascii(text)
