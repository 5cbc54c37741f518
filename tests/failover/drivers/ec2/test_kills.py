"""Killed at any call and asked again: the same end, nothing twice, nothing left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drengine.failover.drivers.ec2.calls import OPERATIONS
from drengine.failover.drivers.ec2.driver import Ec2Driver
from tests.failover.drivers.ec2.site import Helper, Network, Time, connect, driver, network, request
from tests.failover.drivers.ec2.standin import DropError, Request, running

POOL = "ipv4pool-coip-0123456789abcdef0"


class Killed(BaseException):
    """As SIGKILL: nothing of the driver's goes on."""


@pytest.fixture(scope="module")
def built() -> Iterator[Network]:
    with running() as cloud:
        yield network(cloud)


class Fatal:
    """Clients with which the process dies after a call that changes something was carried out."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.seen: list[str] = []

    def __call__(self, service: str, settings: Any) -> Any:
        return _Dying(connect(service, settings), self)

    def counts(self, name: str) -> bool:
        """Whether the process dies at this call."""
        changes = OPERATIONS["".join(part.capitalize() for part in name.split("_"))].changes
        if not changes:
            return False
        self.seen.append(name)
        return len(self.seen) - 1 == self.at


class _Dying:
    def __init__(self, client: Any, fatal: Fatal) -> None:
        self._client = client
        self._fatal = fatal

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._client, name)

        def made(**params: Any) -> Any:
            dies = self._fatal.counts(name)
            answer = call(**params)
            if dies:
                raise Killed
            return answer

        return made


def quiet(_: str) -> None:
    pass


def shape(site: Network) -> list[str]:
    """What is there, by kinds: the same end has the same."""
    return sorted(id.partition("-")[0] for id in site.left())


@pytest.mark.parametrize("isolated", [False, True])
def test_killed_after_each_change_it_goes_on_where_it_was(built: Network, tmp_path: Path, isolated: bool) -> None:
    """Each try makes one change and dies: a life of nothing but kills comes to the same end."""
    site = built.afresh()
    settings = site.settings(elastic_address=POOL, drill_from=["10.0.1.0/24"], user_data="x")
    whole = request(tmp_path / "whole", settings, isolated=isolated)
    driver().launch(whole, quiet)
    expected = shape(site)
    driver().stop(whole)
    assert site.left() == []
    changes = [each.action for each in site.cloud.requests if OPERATIONS[each.action].changes]
    site.cloud.requests.clear()

    helper = Helper()
    wanted = request(tmp_path / "killed", settings, helper, isolated=isolated)
    life: list[Callable[[Ec2Driver], object]] = [
        lambda driver: driver.launch(wanted, quiet),
        lambda driver: driver.stop(wanted),
    ]
    for part in life:
        for _ in range(len(changes) + 8):
            fatal = Fatal(0)
            try:
                part(Ec2Driver(Time().pace(), fatal))
                break
            except Killed:
                continue
        else:
            raise AssertionError(f"it comes to no end: {[each.action for each in site.cloud.requests][-40:]}")
        if part is life[0]:
            assert shape(site) == expected
            assert driver().inspect(wanted).healthy
    assert site.left() == []
    made = [each.action for each in site.cloud.requests if OPERATIONS[each.action].changes]
    for action in (
        "RunInstances",
        "CreateVolume",
        "AllocateAddress",
        "CreateSecurityGroup",
        "ModifyInstanceAttribute",
        "StartInstances",
    ):
        assert made.count(action) == changes.count(action), f"{action} was done twice"


def test_killed_after_each_change_it_can_be_removed_at_once(built: Network, tmp_path: Path) -> None:
    """Whatever was made when it died, `stop` finds it, also what came into sight only afterwards."""
    site = built.afresh()
    settings = site.settings(elastic_address=POOL)
    at = 0
    while True:
        site.cloud.hidden_looks = 1
        wanted = request(tmp_path / str(at), settings, isolated=bool(at % 2))
        fatal = Fatal(at)
        try:
            Ec2Driver(Time().pace(), fatal).launch(wanted, quiet)
        except Killed:
            driver().stop(wanted)
            assert site.left() == [], fatal.seen
            at += 1
            continue
        driver().stop(wanted)
        assert site.left() == []
        break
    assert at > 12


def test_killed_on_the_way_home_nothing_that_was_written_is_lost(built: Network, tmp_path: Path) -> None:
    """Filled again is only what was brought back: the helper's orders alternate, whatever was killed between."""
    site = built.afresh()
    helper = Helper()
    wanted = request(tmp_path / "i", site.settings(), helper)
    driver().launch(wanted, quiet)
    for part in (lambda each: each.quiesce(wanted), lambda each: each.launch(wanted, quiet)):
        for _ in range(40):
            try:
                part(Ec2Driver(Time().pace(), Fatal(0)))
                break
            except Killed:
                continue
        else:
            raise AssertionError("it comes to no end")
    directions = [order["direction"] for _, order in helper.orders]
    assert directions[0] == "fill"
    assert [now for now, before in zip(directions, ["", *directions], strict=False) if now != before] == [
        "fill",
        "return",
        "fill",
    ]
    assert driver().inspect(wanted).healthy
    driver().stop(wanted)
    assert site.left() == []


class Life:
    """A driver in processes of its own, each killed by SIGKILL at one of its calls, before it is carried out or after.

    The stand-in kills it, so there is no doubt about what EC2 had done by then.
    """

    def __init__(self, site: Network, folder: Path, *, isolated: bool) -> None:
        self._site = site
        self._job = {
            "directory": str(folder),
            "settings": site.settings(elastic_address=POOL, drill_from=["10.0.1.0/24"]),
            "isolated": isolated,
            "instance": f"shop-{os.urandom(5).hex()}",
        }

    def is_killed(self, call: str, at: int, *, after: bool) -> bool:
        """Whether it lived until that call, where it was killed."""
        number = 0
        killed = False
        process: subprocess.Popen[bytes]

        def watch(request: Request, is_after: bool) -> None:
            nonlocal number, killed
            if is_after is not after or killed:
                return
            number += 1
            if number - 1 == at:
                killed = True
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                raise DropError

        with self._site.cloud.lock:
            process = self._process(call)
            self._site.cloud.watch = watch
        try:
            code = process.wait(60)
        finally:
            self._site.cloud.watch = None
        assert code == (-signal.SIGKILL if killed else 0)
        return killed

    def _process(self, call: str) -> subprocess.Popen[bytes]:
        job = json.dumps({**self._job, "call": call})
        root = Path(__file__).parents[4]
        path = {"PYTHONPATH": f"{root}:{root / 'agents'}"}
        argv = [sys.executable, "-m", "tests.failover.drivers.ec2.child", job]
        return subprocess.Popen(argv, cwd=root, env={**os.environ, **path})


def lives(site: Network, folder: Path, every: int, *, isolated: bool, after: bool) -> None:
    """Launch, the way home and stop, killed at each `every`th call, asked again, and the same in the end."""
    life = Life(site, folder, isolated=isolated)
    for call in ("launch", "quiesce", "launch", "stop"):
        at = 0
        while life.is_killed(call, at, after=after):
            # What is done already is not called again, so the same number is another call each time.
            at += every
        own = "sg" if isolated else "eipalloc"
        there = {"stop": []}.get(call, sorted(["i", "eni", "vol", "vol", own]))
        assert shape(site) == there, f"after {call}"
    assert site.left() == []


def test_a_process_that_is_killed_leaves_nothing(built: Network, tmp_path: Path) -> None:
    lives(built.afresh(), tmp_path / "i", 31, isolated=False, after=True)


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_a_process_that_is_killed_at_every_call_leaves_nothing(
    built: Network, tmp_path: Path, isolated: bool, after: bool
) -> None:
    lives(built.afresh(), tmp_path / "i", 1, isolated=isolated, after=after)
