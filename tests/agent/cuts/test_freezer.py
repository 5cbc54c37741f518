"""File systems are frozen when we say so, never for longer than allowed, and never left frozen by anybody's death."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from drengine.model.errors import DrengineError
from drengine_agent.cuts.errors import FREEZE_REFUSED
from drengine_agent.cuts.freezer import Freezer
from drengine_agent.cuts.mounts import file_systems_on
from drengine_agent.cuts.watchdog import FIFREEZE
from tests.agent.cuts.disks import file_system, needs_root, writes_within
from tests.agent.cuts.watchdog_campaign import Outcome, campaign, with_our_modules

pytestmark = needs_root


@contextlib.contextmanager
def freezer(longest_seconds: float = 5.0) -> Iterator[Freezer]:
    made = Freezer(longest_seconds=longest_seconds)
    made.start()
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_nobody_writes_between_freeze_and_thaw(tmp_path: Path, kind: str) -> None:
    with file_system(tmp_path, kind) as (_, place), freezer() as held:
        held.settle([place])
        held.freeze([place])
        assert not writes_within(place, 0.2)
        report = held.thaw()
        assert report.held
        assert 0.2 <= report.seconds < 5
        assert writes_within(place, 5.0)


def test_several_file_systems_are_frozen_together_again_and_again(tmp_path: Path) -> None:
    with (
        file_system(tmp_path / "a") as (_, one),
        file_system(tmp_path / "b") as (_, other),
        freezer() as held,
    ):
        for _ in range(20):
            held.freeze([one, other])
            assert held.thaw().held
        assert writes_within(one, 5.0)
        assert writes_within(other, 5.0)


def test_a_freeze_that_outlives_its_time_is_ended_and_does_not_count(tmp_path: Path) -> None:
    with file_system(tmp_path) as (_, place), freezer(0.3) as held:
        held.freeze([place])
        assert writes_within(place, 10.0), "the watchdog did not thaw"
        assert not held.thaw().held


def test_a_thaw_by_somebody_else_is_noticed(tmp_path: Path) -> None:
    with file_system(tmp_path) as (_, place), freezer() as held:
        held.freeze([place])
        subprocess.run(["fsfreeze", "-u", str(place)], check=True)
        assert not held.thaw().held


def test_what_somebody_else_froze_stays_frozen(tmp_path: Path) -> None:
    with file_system(tmp_path / "a") as (_, one), file_system(tmp_path / "b") as (_, other), freezer() as held:
        descriptor = os.open(other, os.O_RDONLY)
        fcntl.ioctl(descriptor, FIFREEZE, 0)
        os.close(descriptor)
        with pytest.raises(DrengineError, match="busy") as raised:
            held.freeze([one, other])
        assert raised.value.kind is FREEZE_REFUSED
        assert writes_within(one, 5.0)
        assert not writes_within(other, 0.1)


def test_a_file_system_that_can_not_be_frozen_is_named(tmp_path: Path) -> None:
    with file_system(tmp_path) as (_, place), freezer() as held:
        with pytest.raises(DrengineError, match="/proc"):
            held.freeze([place, Path("/proc")])
        assert writes_within(place, 5.0)
        held.freeze([place])
        assert held.thaw().held


def test_when_the_watchdog_is_killed_the_agent_thaws_and_says_that_nothing_was_held(tmp_path: Path) -> None:
    with file_system(tmp_path) as (_, place), freezer() as held:
        held.freeze([place])
        os.kill(held.watchdog, signal.SIGKILL)
        assert not held.thaw().held
        assert writes_within(place, 5.0)
        held.freeze([place])  # with a new watchdog
        assert held.thaw().held


def test_signals_that_end_services_do_not_end_the_watchdog(tmp_path: Path) -> None:
    with file_system(tmp_path) as (_, place), freezer() as held:
        held.freeze([place])
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            os.kill(held.watchdog, number)
        assert held.thaw().held


def test_frozen_log_and_state_do_not_hold_up_the_thaw(tmp_path: Path) -> None:
    """Everything that the agent says and notes lies on the frozen file system, and a thread of it hangs there."""
    with file_system(tmp_path) as (_, place):
        script = (
            "import sys, threading, time; from pathlib import Path; from drengine_agent.cuts.freezer import Freezer\n"
            "place = Path(sys.argv[1]); held = Freezer(longest_seconds=30.0); held.start(); held.freeze([place])\n"
            "threading.Thread(target=lambda: (print('log'), sys.stdout.flush()), daemon=True).start()\n"
            "threading.Thread(target=lambda: (place / 'state').write_text('x'), daemon=True).start()\n"
            "time.sleep(0.2); report = held.thaw(); held.close()\n"
            "sys.exit(0 if report.held and report.seconds < 10 else 1)"
        )
        with (place / "log").open("wb") as log:
            done = subprocess.run(
                [sys.executable, "-c", script, str(place)], stdout=log, check=False, timeout=60, env=with_our_modules()
            )
        assert done.returncode == 0


def test_file_systems_are_found_by_what_they_lie_on_and_inner_ones_come_first(tmp_path: Path) -> None:
    with file_system(tmp_path) as (device, place):
        assert [(each.at, each.kind) for each in file_systems_on([device])] == [(place, "ext4")]
        with file_system(place / "inner") as (inner, inside):
            assert [each.at for each in file_systems_on([device])] == [inside, place]
            assert [each.at for each in file_systems_on([inner])] == [inside]
            found = [each.at for each in file_systems_on([device])]
            with freezer() as held:
                held.settle(found)
                held.freeze(found)
                assert held.thaw().held


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_an_agent_that_dies_or_stops_in_a_freeze_leaves_nothing_frozen(tmp_path: Path, number: signal.Signals) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    with file_system(tmp_path) as (_, place):
        outcome = campaign(place, number, rounds=4, longest_seconds=1.0, seed=seed)
    assert outcome == Outcome(rounds=4, left_frozen=0, longest=outcome.longest)


def test_a_mount_that_is_read_only_for_us_alone_is_frozen_all_the_same(tmp_path: Path) -> None:
    """As a service with ProtectSystem=strict sees it: others write there through other mounts."""
    with file_system(tmp_path) as (device, place):
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        ours = next(line.split() for line in lines if line.split()[4] == str(place))
        seen = tmp_path / "proc/self/mountinfo"
        seen.parent.mkdir(parents=True)
        seen.write_text(" ".join([*ours[:5], "ro,relatime", *ours[6:]]) + "\n")
        assert [each.at for each in file_systems_on([device], processes=tmp_path / "proc")] == [place]
        seen.write_text(" ".join([*ours[:-1], "ro"]) + "\n")
        assert not file_systems_on([device], processes=tmp_path / "proc")
