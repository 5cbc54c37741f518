"""Freezes that hang inside the kernel, and watchdogs that are killed or stopped: nothing stays frozen by us."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from drengine.model.errors import DrengineError
from drengine_agent.cuts.errors import FREEZE_REFUSED, FREEZE_TOO_LONG
from drengine_agent.cuts.freezer import Freezer
from drengine_agent.cuts.watchdog import FIFREEZE, FREEZING
from tests.agent.cuts.disks import file_system, needs_root, run, thaw, until, writes_within
from tests.agent.cuts.test_freezer import freezer
from tests.agent.cuts.watchdog_campaign import with_our_modules

pytestmark = needs_root
PATIENCE = 20.0


def frozen_by_somebody_else(place: Path) -> None:
    descriptor = os.open(place, os.O_RDONLY)
    fcntl.ioctl(descriptor, FIFREEZE, 0)
    os.close(descriptor)


@contextlib.contextmanager
def hanging(folder: Path) -> Iterator[tuple[Path, Path, Path]]:
    """(free, hangs, host): freezing `hangs` waits inside the kernel until `host`, on which it lies, is thawed."""
    with (
        file_system(folder / "free") as (_, free),
        file_system(folder / "host", size=64 << 20) as (_, host),
        file_system(host / "inner") as (_, hangs),
    ):
        run("sync", "--file-system", hangs)
        frozen_by_somebody_else(host)
        try:
            yield free, hangs, host
        finally:
            thaw(host)
            assert writes_within(hangs, PATIENCE), "it stayed frozen"


def hangs_in(held: Freezer) -> bool:
    """Whether a thread of the watchdog is inside the kernel's freeze."""
    tasks = Path(f"/proc/{held.watchdog}/task").glob("*/stat")
    return any(each.read_text().rpartition(")")[2].split()[0] == "D" for each in tasks)


def test_a_freeze_that_hangs_is_given_up_in_time_and_thawed_when_the_kernel_returns(tmp_path: Path) -> None:
    with hanging(tmp_path) as (free, hangs, host), freezer(0.5) as held:
        with pytest.raises(DrengineError) as raised:
            held.freeze([free, hangs])
        assert raised.value.kind is FREEZE_TOO_LONG
        assert writes_within(free, PATIENCE)
        with pytest.raises(DrengineError, match="still hangs") as raised:
            held.freeze([free])
        assert raised.value.kind is FREEZE_REFUSED
        thaw(host)
        assert writes_within(hangs, PATIENCE)
        until(lambda: not hangs_in(held))
        held.freeze([free, hangs])
        assert held.thaw().held


def test_a_watchdog_killed_while_its_freeze_hangs_leaves_frozen_only_what_others_froze(tmp_path: Path) -> None:
    with (
        hanging(tmp_path) as (free, hangs, host),
        file_system(tmp_path / "theirs") as (_, theirs),
        freezer(0.5) as held,
    ):
        frozen_by_somebody_else(theirs)
        refused: list[BaseException] = []

        def freeze() -> None:
            try:
                held.freeze([free, hangs, theirs])
            except DrengineError as error:
                refused.append(error)

        thread = threading.Thread(target=freeze)
        thread.start()
        until(lambda: held._states[1] == FREEZING and hangs_in(held))
        os.kill(held.watchdog, signal.SIGKILL)
        assert writes_within(free, PATIENCE)
        thaw(host)
        thread.join(PATIENCE)
        assert len(refused) == 1
        assert writes_within(hangs, PATIENCE)
        assert not writes_within(theirs, 0.3)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_an_agent_killed_or_stopped_while_a_freeze_hangs_leaves_nothing_frozen(tmp_path: Path, number: int) -> None:
    script = (
        "import sys; from pathlib import Path; from drengine_agent.cuts.freezer import Freezer\n"
        "held = Freezer(longest_seconds=0.5); held.start(); print(held.watchdog, flush=True)\n"
        "held.freeze([Path(each) for each in sys.argv[1:]])"
    )
    with hanging(tmp_path) as (free, hangs, host):
        agent = subprocess.Popen(
            [sys.executable, "-c", script, str(free), str(hangs)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=with_our_modules(),
        )
        with agent:
            assert agent.stdout
            watchdog = Path(f"/proc/{int(agent.stdout.readline())}")
            until(
                lambda: any(
                    each.read_text().rpartition(")")[2].split()[0] == "D" for each in watchdog.glob("task/*/stat")
                )
            )
            agent.send_signal(number)
            assert writes_within(free, PATIENCE)
            thaw(host)
            assert writes_within(hangs, PATIENCE)
            agent.kill()
        until(lambda: not watchdog.exists() or "Z" in (watchdog / "stat").read_text().rpartition(")")[2].split()[0])


def test_a_stopped_watchdog_is_replaced_in_time_and_nothing_was_held(tmp_path: Path) -> None:
    with file_system(tmp_path) as (_, place), freezer(0.3) as held:
        held.freeze([place])
        os.kill(held.watchdog, signal.SIGSTOP)
        assert writes_within(place, PATIENCE)
        assert not held.thaw().held
        held.freeze([place])
        assert held.thaw().held


def test_a_killed_watchdog_is_replaced_at_once_also_when_the_agent_does_nothing(tmp_path: Path) -> None:
    with file_system(tmp_path) as (_, place), freezer(300.0) as held:
        held.freeze([place])
        os.kill(held.watchdog, signal.SIGKILL)
        assert writes_within(place, PATIENCE)
        assert not held.thaw().held


def test_nothing_is_held_open_after_a_freeze_or_a_refusal(tmp_path: Path) -> None:
    with file_system(tmp_path / "a") as (device, place), freezer() as held:
        held.freeze([place])
        held.thaw()
        with pytest.raises(DrengineError):
            held.freeze([place, Path("/proc")])
        until(lambda: subprocess.run(["umount", place], capture_output=True, check=False).returncode == 0)
        run("mount", device, place)


@pytest.mark.parametrize("garbage", [b"F", b"F123", b"X", b"T" * 60])
def test_a_garbled_order_ends_the_watchdog_with_everything_thawed(tmp_path: Path, garbage: bytes) -> None:
    with file_system(tmp_path) as (_, place), freezer() as held:
        held.freeze([place])
        assert held._socket is not None
        held._socket.send(garbage)
        assert not held.thaw().held or garbage[:1] in (b"T", b"X")
        assert writes_within(place, PATIENCE)


def test_the_watchdog_also_starts_out_of_an_archive(tmp_path: Path) -> None:
    archive = tmp_path / "agent.pyz"
    root = Path(__file__).parents[3]
    with zipfile.ZipFile(archive, "w") as packed:
        for base, package in ((root, "drengine"), (root / "agents", "drengine_agent")):
            for path in (base / package).rglob("*.py"):
                packed.write(path, path.relative_to(base))
        packed.writestr(
            "__main__.py",
            "import sys; from pathlib import Path; from drengine_agent.cuts import freezer\n"
            "assert sys.argv[0] in freezer.__file__\n"
            "held = freezer.Freezer(longest_seconds=30.0); held.start(); held.freeze([Path(sys.argv[1])])\n"
            "report = held.thaw(); held.close(); sys.exit(not report.held)",
        )
    with file_system(tmp_path / "f") as (_, place):
        done = subprocess.run([sys.executable, "-IS", archive, place], capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
