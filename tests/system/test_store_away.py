"""A real agent and a real target whose store goes away and comes back: nobody has to do anything."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from benchmarks.site import check_replica, free_port, site, wait_for

pytestmark = [pytest.mark.timeout(120), pytest.mark.fault(65)]
SIZE = 1 << 20


def ready(port: int) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


def test_an_agent_backs_off_while_the_store_is_away_and_goes_on_when_it_is_back(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(os.urandom(SIZE))
    aside = tmp_path / "aside"
    with site(tmp_path) as here:
        target = here.start_target()
        port = free_port()
        agent = here.start_agent(target, "shop", {"data": disk}, metrics=f"127.0.0.1:{port}")
        first = wait_for("a point", lambda: target.points("shop"), target, agent)[-1]
        wait_for("it to be ready", lambda: ready(port)[0] == 200, target, agent)
        target.store.rename(aside)
        told = wait_for(
            "the agent to be told", lambda: (s := agent.ask("status"))["reason"] == "target-away" and s, target, agent
        )
        assert told["state"] == "DISCONNECTED"
        assert "mount" in str(told["hint"])
        assert agent.ask("resume")["state"] == "INITIATING", "it tries again at once"
        assert ready(port)[0] == 503
        wait_for("the reason", lambda: "target-away" in ready(port)[1], target, agent)
        disk.write_bytes(os.urandom(SIZE))
        aside.rename(target.store)
        wait_for("the session", lambda: agent.ask("status")["state"] == "CONTINUOUS", target, agent)
        agent.ask("sync")
        wait_for("a new point", lambda: target.points("shop", after=first.sequence), target, agent)
        wait_for("the end of it", lambda: agent.ask("status")["backlog_bytes"] == 0, target, agent)
        check_replica(target, "shop", disk)
