"""The audit log keeps each acknowledged entry through crashes, in order, and however many write it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drengine.audit import AuditLog, Keep, Outcome
from drengine.audit.errors import AUDIT_UNUSABLE
from drengine.audit.files import HEAD_FILE, files
from drengine.audit.verify import read_entries, verify
from drengine.model.errors import DrengineError
from tests.clock import ManualClock

SMALL = Keep(file_bytes=1500)


def fill(log: AuditLog, count: int, *, since: int = 0) -> None:
    for number in range(since, since + count):
        log.record(who="person:ann", proved="token", did="run.approve", on=f"run-{number}")


def done_on(directory: Path) -> list[str]:
    return [line.entry.on for line in read_entries(directory) if line.entry.who != "drengine"]


def test_an_entry_says_who_did_what(tmp_path: Path) -> None:
    log = AuditLog.open(tmp_path / "audit", clock=ManualClock(5))
    log.record(
        who="person:ann",
        proved="password",
        did="run.approve",
        on="r1",
        outcome=Outcome.REFUSED,
        error="bad-approval",
        details={"step": "switch", "password": "hunter2", "said": "token=hunter2 for it", "deep": [[[["x"]]]]},
    )
    (line,) = read_entries(tmp_path / "audit")
    entry = line.entry
    assert (entry.number, entry.at_ns, entry.who, entry.proved, entry.did, entry.on, entry.outcome, entry.error) == (
        (1, 5, "person:ann", "password", "run.approve", "r1", Outcome.REFUSED, "bad-approval")
    )
    assert entry.details == {"step": "switch", "password": "***", "said": "token=*** for it", "deep": [[["..."]]]}


@pytest.mark.parametrize(
    "details",
    [
        {"a": "x" * (1 << 20)},
        {str(number): "x" * 1000 for number in range(1000)},
        {"a": [["\x00\ud800\n\x1b"] * 1000] * 1000, "n": 1 << 200, "f": float("nan"), "o": object()},
    ],
)
def test_whatever_is_told_fits_a_line(tmp_path: Path, details: dict[str, Any]) -> None:
    log = AuditLog.open(tmp_path)
    log.record(who="w" * 10_000, did="d" * 10_000, on="\n" * 10_000, details=details)
    log.record(who="x", did="y")
    assert verify(tmp_path).last == 2
    assert max(map(len, (tmp_path / "000000000001.log").read_bytes().split(b"\n"))) < 8192


def test_a_line_can_be_checked_without_this_program(tmp_path: Path) -> None:
    log = AuditLog.open(tmp_path)
    fill(log, 2)
    _, first, second = (tmp_path / "000000000001.log").read_text().splitlines()
    text = f"{first.split(' ')[0]} {second.split(' ', 1)[1]}"
    said = subprocess.run(["sha256sum"], input=text, text=True, capture_output=True, check=True).stdout
    assert said.split()[0] == second.split(" ")[0]
    assert json.loads(second.split(" ", 1)[1])["number"] == 2


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        log = AuditLog.open(tmp_path / "audit", keep=SMALL)
        fill(log, 20)
    finally:
        os.umask(previous)
    assert (tmp_path / "audit").stat().st_mode & 0o777 == 0o700
    assert {each.stat().st_mode & 0o777 for each in (tmp_path / "audit").iterdir()} == {0o600}


def test_the_chain_goes_on_from_file_to_file(tmp_path: Path) -> None:
    fill(AuditLog.open(tmp_path, keep=SMALL), 30)
    assert len(files(tmp_path)) > 3
    checked = verify(tmp_path)
    assert (checked.broken, checked.first, checked.last) == ("", 1, 30)


@pytest.mark.parametrize("keep", [Keep(file_bytes=1500, bytes_max=4500), Keep(file_bytes=1500, seconds=50)])
def test_retention_removes_the_oldest_and_an_entry_vouches_for_them(tmp_path: Path, keep: Keep) -> None:
    clock = ManualClock()
    log = AuditLog.open(tmp_path, keep=keep, clock=clock)
    for number in range(60):
        fill(log, 1, since=number)
        clock.advance(4)
    checked = verify(tmp_path)
    assert (checked.broken, checked.removed > 30, checked.first) == ("", True, checked.removed + 1)
    assert done_on(tmp_path)[-5:] == [f"run-{number}" for number in range(55, 60)]
    assert len(files(tmp_path)) <= 5


class CrashError(BaseException):
    """The process dies here."""


def crashes_at(monkeypatch: pytest.MonkeyPatch, step: int, *, after: bool) -> Callable[[], int]:
    """Let the process die at the nth write, sync, rename or removal, before or after it is made."""
    counted = 0

    def die(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal counted
            counted += 1
            if counted == step:
                if name == "pwrite" and not after and len(arguments[1]) > 200:
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2], arguments[2])
                elif after:
                    real(*arguments, **named)
                raise CrashError
            return real(*arguments, **named)

        return call

    for name in ("pwrite", "write", "fdatasync", "fsync", "rename", "unlink"):
        monkeypatch.setattr(os, name, die(getattr(os, name), name))
    monkeypatch.setattr(os, "ftruncate", lambda *_: None)
    return lambda: counted


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("keeps_head", [True, False], ids=["head", "no-head"])
def test_a_crash_at_any_step_loses_nothing_acknowledged(tmp_path: Path, after: bool, keeps_head: bool) -> None:
    keep = Keep(file_bytes=1200, bytes_max=3600)
    step, steps = 0, 10**9
    while step < steps:
        step += 1
        directory = tmp_path / str(step)
        acknowledged = 0
        with pytest.MonkeyPatch.context() as patch:
            count = crashes_at(patch, step, after=after)
            try:
                log = AuditLog.open(directory, keep=keep)
                for number in range(25):
                    fill(log, 1, since=number)
                    acknowledged += 1
                steps = count()
            except CrashError:
                pass
        if not keeps_head and (directory / HEAD_FILE).exists():
            (directory / HEAD_FILE).write_bytes(bytes(145))  # as a power cut may leave it
        fill(AuditLog.open(directory, keep=keep), 2, since=100)
        checked = verify(directory)
        assert checked.broken == "", f"step {step}: {checked}"
        kept = done_on(directory)
        told = [f"run-{number}" for number in range(25)]
        assert [*kept[:-2]][-6:] in (told[:acknowledged][-6:], told[: acknowledged + 1][-6:]), f"step {step}"
        assert kept[-2:] == ["run-100", "run-101"]
    assert step > 60


def test_an_older_head_is_caught_up_with(tmp_path: Path) -> None:
    log = AuditLog.open(tmp_path / "audit", keep=SMALL)
    heads = []
    for number in range(20):
        fill(log, 1, since=number)
        heads.append((tmp_path / "audit" / HEAD_FILE).read_bytes())
    for number, head in enumerate(heads):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(tmp_path / "audit", copy)
        (copy / HEAD_FILE).write_bytes(head)
        assert verify(copy).broken == ""
        fill(AuditLog.open(copy), 1, since=20)
        assert (verify(copy).broken, verify(copy).last) == ("", 21)


def test_a_full_disk_is_said_and_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog.open(tmp_path)
    fill(log, 1)
    real = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda descriptor, content, at: real(descriptor, content[:100], at))
        with pytest.raises(DrengineError) as raised:
            fill(log, 1, since=1)
        assert raised.value.kind is AUDIT_UNUSABLE
    fill(log, 1, since=2)
    assert (verify(tmp_path).broken, verify(tmp_path).mended, done_on(tmp_path)) == ("", 0, ["run-0", "run-2"])


def test_a_log_that_went_away_is_not_begun_anew(tmp_path: Path) -> None:
    """An empty directory may be where the store's file system is not mounted."""
    log = AuditLog.open(tmp_path / "store/audit")
    fill(log, 1)
    (tmp_path / "store").rename(tmp_path / "away")
    (tmp_path / "store").mkdir()
    with pytest.raises(DrengineError) as raised:
        fill(log, 1, since=1)
    assert raised.value.kind is AUDIT_UNUSABLE
    assert list((tmp_path / "store").iterdir()) == []


WRITER = """
import sys
from pathlib import Path
from drengine.audit import AuditLog, Keep
log = AuditLog.open(Path(sys.argv[1]), keep=Keep(file_bytes=8000))
for number in range(int(sys.argv[3])):
    log.record(who=f"person:{sys.argv[2]}", did="run.begin", on=str(number))
    print(number, flush=True)
"""


def test_processes_share_a_log_and_killed_ones_lose_nothing(tmp_path: Path) -> None:
    log = tmp_path / "audit"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(log), name, str(count)], stdout=subprocess.PIPE, text=True)
        for name, count in (("ann", 100), ("bob", 100), ("eve", 10**9))
    ]
    heard: dict[str, int] = {}
    for name, writer in zip(("ann", "bob"), writers, strict=False):
        said, _ = writer.communicate()
        assert writer.returncode == 0
        heard[name] = len(said.splitlines())
    writers[2].send_signal(signal.SIGKILL)
    said, _ = writers[2].communicate()
    heard["eve"] = len(said.splitlines())
    AuditLog.open(log).record(who="person:zoe", did="run.begin")
    assert verify(log).broken == ""
    for name, count in heard.items():
        numbers = [line.entry.on for line in read_entries(log) if line.entry.who == f"person:{name}"]
        assert len(numbers) in (count, count + 1)
        assert numbers == [str(number) for number in range(len(numbers))]
    assert heard["eve"] > 0
