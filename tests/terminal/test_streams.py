"""Wherever output goes, and whatever it can't take: the work is done, its loss is told, and nothing is cut off."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

import pytest

from drengine.cli.main import app
from drengine.terminal import main
from tests.recovery.replica import make

pytestmark = pytest.mark.timeout(120)
DRENGINE = [sys.executable, "-m", "drengine.cli.main"]
AGENT = [sys.executable, "-m", "drengine_agent.cli.main"]
LISTING = [
    [*DRENGINE, "points", "--store", "STORE"],
    [*DRENGINE, "status", "--store", "STORE"],
    [*DRENGINE, "status", "--store", "STORE", "--json"],
    [*DRENGINE, "branches", "--store", "STORE"],
    [*DRENGINE, "verify", "latest", "--store", "STORE"],
    [*DRENGINE, "--version"],
    [*DRENGINE, "--help"],
    [*DRENGINE, "target", "example-config"],
    [*AGENT, "--version"],
    [*AGENT, "example-config"],
    [*AGENT, "cut", "--help"],
]
all_listing = pytest.mark.parametrize("words", LISTING, ids=lambda words: " ".join(words[2:]))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("terminal") / "store"
    make(directory)
    return directory


def typed(words: Sequence[str], store: Path, redirected: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """What a shell runs as `words redirected`."""
    argv = [str(store) if word == "STORE" else word for word in words]
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirected}', "sh", *argv],
        capture_output=True,
        check=False,
        timeout=60,
        env=os.environ | environment,
    )


@all_listing
@pytest.mark.parametrize(("redirected", "unbuffered"), [(">/dev/full", ""), (">&-", "1")])
def test_output_that_can_not_be_written_is_told_with_its_own_id(
    words: list[str], redirected: str, unbuffered: str, store: Path
) -> None:
    done = typed(words, store, redirected, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 52, done.stderr
    said = done.stderr.decode()
    assert '"error": "output-failed"' in said if "--json" in words else "[output-failed]" in said
    assert "Traceback" not in said and "Exception" not in said


@pytest.mark.parametrize("words", [LISTING[0], LISTING[2], LISTING[-1]], ids=["table", "json", "help"])
def test_nobody_reads_what_it_says_of_itself(words: list[str], store: Path) -> None:
    """With standard error full or closed the result is the same."""
    whole = typed(words, store, "")
    for redirected in ("2>/dev/full", "2>&-"):
        done = typed(words, store, redirected)
        assert done.returncode == whole.returncode
        assert len(done.stdout.splitlines()) == len(whole.stdout.splitlines()) > 0


def test_an_error_keeps_its_exit_code_where_nothing_can_be_written(store: Path) -> None:
    for redirected in (">/dev/full 2>/dev/full", ">&- 2>&-", ">&- 2>&- <&-"):
        assert typed([*DRENGINE, "verify", "1-999999", "--store", "STORE"], store, redirected).returncode == 41


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_what_is_printed_never_lands_in_a_file_that_was_opened_in_the_place_of_a_closed_stream(
    closed: str, tmp_path: Path
) -> None:
    make(tmp_path / "store")
    typed([*DRENGINE, "pin", "latest", "--store", "STORE"], tmp_path / "store", closed)
    typed([*DRENGINE, "verify", "latest", "--store", "STORE"], tmp_path / "store", closed)
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert not [path for path in files if b"is pinned" in path.read_bytes() or b"is intact" in path.read_bytes()]
    assert typed([*DRENGINE, "verify", "latest", "--store", "STORE"], tmp_path / "store", "").returncode == 0


@pytest.mark.fault(78)
def test_a_restore_goes_on_where_nobody_can_read_how(store: Path, tmp_path: Path) -> None:
    for number, redirected in enumerate((">/dev/full", ">&-", "| true")):
        disk = tmp_path / f"{number}.img"
        words = [*DRENGINE, "restore", "latest", "--store", "STORE", "--to", f"data={disk}"]
        done = typed(words, store, redirected)
        assert disk.exists(), done.stderr
        assert sorted(path.name for path in tmp_path.glob(f"{number}.*")) == [disk.name]


def test_a_reader_that_goes_away_ends_a_listing_quietly(store: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    argv = [*DRENGINE, "points", "--store", str(store)]
    done = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_pipe_that_does_not_block_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    code = (
        "import sys; from drengine.terminal import *\n"
        "made = app('tool', 'A tool.')\n"
        "@made.command()\n"
        "def talk(): print('x' * 1_000_000)\n"
        "sys.exit(main(made, ['talk']))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE) as talking:
        os.close(writer)
        with os.fdopen(reader, "rb") as reading:
            assert len(reading.read()) == 1_000_001
        assert talking.wait(30) == 0


GLYPHS = "✓ ✗ ▶ · ↻ → … é 日"


@pytest.mark.parametrize(
    ("encoding", "seen"),
    [
        ("utf-8", GLYPHS.encode()),
        ("latin-1", b"+ x > \xb7 ~ -> ... \xe9 ?"),
        ("ascii", b"+ x > . ~ -> ... ? ?"),
    ],
)
def test_an_encoding_that_lacks_a_character_shows_something_like_it(encoding: str, seen: bytes) -> None:
    code = (
        "import sys; from drengine.terminal import *\n"
        "made = app('tool', 'A tool.')\n"
        "@made.command()\n"
        f"def talk(): print({GLYPHS!r}); note({GLYPHS!r})\n"
        "sys.exit(main(made, ['talk']))\n"
    )
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, seen + b"\n", seen + b"\n")


def at_a_terminal(argv: Sequence[str], columns: int, **environment: str) -> str:
    """What a person sees in a terminal of that width, without its colours."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"} | environment
    with subprocess.Popen(argv, stdout=slave, stderr=slave, env=environment | {"TERM": "xterm"}) as process:
        os.close(slave)
        seen = b""
        while True:
            try:
                if not (more := os.read(master, 65536)):
                    break
            except OSError:  # the other end is closed
                break
            seen += more
        assert process.wait(30) == 0, seen
    os.close(master)
    plain = re.sub(rb"\x1b\[[0-9;]*m", b"", seen)
    return plain.decode(environment.get("PYTHONIOENCODING", "utf-8")).replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("columns", "encoding"), [(20, "utf-8"), (40, "latin-1"), (80, "utf-8"), (80, "latin-1"), (200, "utf-8")]
)
def test_in_any_terminal_ids_times_and_headings_are_whole(
    columns: int, encoding: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(app, ["points", "--store", str(store)])
    heads, *rows = capsys.readouterr().out.splitlines()
    main(app, ["points", "--store", str(store), "--json"])
    labels = [each["label"] for each in json.loads(capsys.readouterr().out)]
    shown = at_a_terminal([*DRENGINE, "points", "--store", str(store)], columns, PYTHONIOENCODING=encoding)
    assert "…" not in shown and "..." not in shown
    for row, label in zip(rows, labels, strict=True):
        point, day, time, *_ = row.split()
        assert point in shown and f"{day} {time}" in shown and label in shown
    assert all(head in shown for head in heads.split() if head not in ("pinned", "locked"))
    if columns >= 40:
        assert max(map(len, shown.splitlines())) <= columns


def test_a_table_folds_texts_only_where_that_makes_it_fit() -> None:
    code = (
        "import sys; from drengine.terminal import *\n"
        "made = app('tool', 'A tool.')\n"
        "@made.command()\n"
        "def talk(): show_table(('step', 'took', 'result'), [('launch:shop', '3.20 s', 'word ' * 30)])\n"
        "sys.exit(main(made, ['talk']))\n"
    )
    shown = at_a_terminal([sys.executable, "-c", code], 60)
    assert shown.count("word") == 30
    assert "launch:shop" in shown and "3.20 s" in shown
    assert all(len(line) == 60 for line in shown.splitlines())
