"""Hooks fail, hang, fork and talk too much; the cut is given up and what was begun is undone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from drengine.model.errors import DrengineError
from drengine_agent.cuts.errors import HOOK_FAILED
from drengine_agent.cuts.freezer import Freezer
from drengine_agent.cuts.hooks import Hooks
from drengine_agent.cuts.still import Stillness
from tests.agent.cuts.disks import file_system, needs_root, until, writes_within


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.fault(56)
def test_a_failing_hook_is_named_with_its_last_words_and_no_more(tmp_path: Path) -> None:
    hooks = Hooks(before=python("print('x' * 10**7); print('the disk is on fire'); raise SystemExit(3)"))
    with pytest.raises(DrengineError, match="the disk is on fire") as raised:
        hooks.run_before()
    assert raised.value.kind is HOOK_FAILED
    assert sys.executable in raised.value.message
    assert "status 3" in raised.value.message
    assert len(raised.value.message) < 1000


@pytest.mark.fault(56)
def test_a_hook_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    fork = (
        "import os, sys, time, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "pid = os.fork()\nopen(sys.argv[1], 'w').write(str(pid)) if pid else None\ntime.sleep(600)"
    )
    with pytest.raises(DrengineError, match=r"took longer than 0\.5 s"):
        Hooks(before=python(fork, note), timeout_seconds=0.5).run_before()
    child = int(note.read_text())
    until(lambda: not alive(child))


@pytest.mark.fault(54)
def test_arguments_are_arguments_whatever_stands_in_them(tmp_path: Path) -> None:
    note = tmp_path / "note"
    odd = "$(touch /tmp/x); `id` | & ' \" \n *"
    Hooks(before=python("import sys; open(sys.argv[1], 'w').write(sys.argv[2])", note, odd)).run_before()
    assert note.read_text() == odd


def test_a_hook_that_can_not_be_started_is_a_failed_hook() -> None:
    with pytest.raises(DrengineError, match="/nowhere/at/all") as raised:
        Hooks(before=["/nowhere/at/all"]).run_before()
    assert raised.value.kind is HOOK_FAILED


def append(note: Path, word: str, status: int = 0) -> list[str]:
    code = "import sys; open(sys.argv[1], 'a').write(sys.argv[2] + ' '); sys.exit(int(sys.argv[3]))"
    return python(code, note, word, status)


@needs_root
@pytest.mark.parametrize(
    ("before", "after", "body", "failure"),
    [
        (0, 0, "", ""),
        (1, 0, "", "hook-failed"),
        (0, 1, "", ""),
        (0, 0, "raise", "boom"),
        (0, 0, "refuse", "freeze-refused"),
    ],
)
def test_the_hook_after_always_runs_and_nothing_stays_frozen(
    tmp_path: Path, before: int, after: int, body: str, failure: str
) -> None:
    note = tmp_path / "note"
    hooks = Hooks(before=append(note, "before", before), after=append(note, "after", after))
    with file_system(tmp_path / "f") as (_, place):
        stillness = Stillness(
            Freezer(longest_seconds=20.0), hooks, lambda: [place, Path("/proc")][: 1 + (body == "refuse")]
        )
        stillness.start()
        try:
            with stillness.held(application=True) as still:
                assert not writes_within(place, 0.1)
                if body == "raise":
                    raise ValueError("boom")  # noqa: TRY301
            assert still.held
            assert not failure
        except (DrengineError, ValueError) as error:
            assert failure in f"{error}"
        assert note.read_text() == "before after "
        assert writes_within(place, 10.0)
        stillness.close()
