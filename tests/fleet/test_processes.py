"""The fleet as its operators see it: real daemons, an agent that is told its policy, and parties that are gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.site import Process, Site, environment, free_port, site, wait_for
from tests.typed import DRENGINE, typed

pytestmark = [pytest.mark.timeout(240)]


class Outpost:
    """A target, an orchestrator with its broker, and commands as somebody types them."""

    def __init__(self, here: Site) -> None:
        self.here = here
        self.folder = here.folder
        self.target = here.start_target()
        self.broker = free_port()
        self.config = self.folder / "orchestrator.toml"
        self.config.write_text(
            f'store = "{self.target.store}"\nstate = "{self.folder}/state"\nexport = "unix:{self.target.nbd}"\n'
            f'rest = "127.0.0.1:{free_port()}"\n[broker]\naddress = "127.0.0.1:{self.broker}"\nembedded = true\n'
        )
        self.orchestrator = self.start()

    def start(self) -> Process:
        log = self.folder / "orchestrator.log"
        with log.open("ab") as output:
            line = [sys.executable, "-m", "drengine.cli.main", "orchestrator", "run", "--config", str(self.config)]
            popen = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment())
        process = Process(popen, log)
        self.here._running.append(process)
        wait_for("the orchestrator", lambda: b"orchestrator is ready" in log.read_bytes(), process)
        return process

    def agent(self, name: str = "shop", *, disk: Path | None = None, tracker: str = "nbd", **options: str) -> Any:
        if disk is None:
            disk = self.folder / f"{name}.img"
            disk.write_bytes(os.urandom(1 << 20))
        control = f'address = "127.0.0.1:{self.broker}"\nreport_interval = "300ms"\n'
        return self.here.start_agent(
            self.target, name, {"data": disk}, tracker=tracker, control=control + options.pop("control", ""), **options
        )

    def type(self, *words: str) -> tuple[int, str, str]:
        done = typed(DRENGINE, *words, env={**environment(), "DRENGINE_CONFIG": str(self.config)}, seconds=60)
        return done.returncode, done.stdout, done.stderr

    def fleet(self, *words: str) -> Any:
        code, out, err = self.type("fleet", *words, "--json")
        assert code == 0, err
        return json.loads(out)

    def source(self, name: str = "shop") -> Any:
        return next((each for each in self.fleet("--all")["sources"] if each["source"] == name), None)


@pytest.fixture
def outpost(tmp_path: Path) -> Iterator[Outpost]:
    with site(tmp_path) as here:
        yield Outpost(here)


@contextmanager
def stopped(outpost: Outpost, process: Process) -> Iterator[None]:
    process.popen.send_signal(signal.SIGKILL)
    process.popen.wait()
    outpost.here._running.remove(process)
    yield


def continuous(outpost: Outpost) -> bool:
    found = outpost.source()
    return bool(found and found["state"] == "CONTINUOUS" and found["newest_point"])


def test_a_policy_is_taken_without_a_restart_and_kept_over_one_and_the_agents_own_file_wins_where_it_says_so(
    outpost: Outpost,
) -> None:
    agent = outpost.agent(bandwidth="50MiB/s", control='local_settings = ["point_interval"]\n')
    wait_for("the source", lambda: continuous(outpost), agent)
    before = outpost.source()
    assert before["policy"]["bandwidth"] == {"value": None, "by": "", "in_use": "50MiB/s", "from": "file"}
    assert before["policy_taken"] is True
    pid = agent.popen.pid

    outpost.fleet("policy", "set", "sh*", "bandwidth=10MiB/s", "point_interval=700ms", "ring=canary")
    wait_for("the limit", lambda: agent.ask("status")["bandwidth_limit_bytes_per_second"] == 10 << 20, agent)
    assert agent.ask("status")["settings"] == {
        "cuts": ["auto", "default"],
        "bandwidth": ["10MiB/s", "policy"],
        "point_interval": ["50ms", "default"],
    }
    wait_for("the report", lambda: outpost.source()["policy_taken"] is True, agent)
    found = outpost.source()
    assert found["policy"]["bandwidth"] == {"value": "10MiB/s", "by": "sh*", "in_use": "10MiB/s", "from": "policy"}
    assert found["policy"]["point_interval"]["in_use"] == "50ms", "the file says so"
    assert found["ring"] == "canary"
    assert agent.popen.pid == pid

    code, _, err = outpost.type("fleet", "policy", "set", "shop", "bandwidth=plenty")
    assert code == 210
    assert "'plenty' is not a rate" in err
    assert outpost.fleet("policy")["rules"] == {
        "sh*": {"bandwidth": "10MiB/s", "point_interval": "700ms", "ring": "canary"}
    }

    outpost.fleet("policy", "unset", "sh*")
    wait_for("its own limit", lambda: agent.ask("status")["bandwidth_limit_bytes_per_second"] == 50 << 20, agent)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: loop devices, BPF")
def test_kinds_of_cuts_change_under_a_tracker_that_runs_and_it_freezes_when_it_may(
    outpost: Outpost, disk: Path, tmp_path: Path
) -> None:
    place = tmp_path / "mounted"
    place.mkdir()
    subprocess.run(["mount", disk, place], check=True)
    try:
        outpost.fleet("policy", "set", "*", "cuts=quiet")
        agent = outpost.agent(disk=disk, tracker="ebpf")
        wait_for("quiet cuts", lambda: agent.ask("status")["cut_kinds"] == ["quiet"], agent)
        outpost.fleet("policy", "set", "*", "cuts=quiet, frozen")
        wait_for("frozen cuts", lambda: agent.ask("status")["cut_kinds"] == ["quiet", "frozen"], agent)
        with (place / "busy").open("wb", buffering=0) as busy:

            def frozen() -> bool:
                busy.write(os.urandom(4096))
                os.fsync(busy.fileno())
                return bool(agent.ask("status")["freezes"])

            wait_for("a freeze", frozen, agent, seconds=90)
        outpost.fleet("policy", "unset", "*")
        wait_for("its own kinds", lambda: agent.ask("status")["settings"]["cuts"] == ["auto", "default"], agent)
        outpost.here.stop(agent)
    finally:
        subprocess.run(["umount", place], check=True)
        subprocess.run(
            [sys.executable, "-m", "drengine_agent", "untrack", "--config", str(tmp_path / "shop/agent.toml")],
            env=environment(),
            check=False,
        )


def test_retiring_revokes_the_identity_where_the_ca_is(outpost: Outpost) -> None:
    ca = str(outpost.folder / "ca")
    assert outpost.type("ca", "init", "--ca", ca)[0] == 0
    assert outpost.type("ca", "issue", "--ca", ca, "agent/shop", "--to", str(outpost.folder / "cert"))[0] == 0
    assert outpost.type("source", "add", "shop")[0] == 0
    outpost.config.write_text(outpost.config.read_text() + f'[fleet]\nca = "{ca}"\n')
    with stopped(outpost, outpost.orchestrator):
        found = outpost.source()
        assert found["known_by"] == ["store", "identity"]
        assert found["joined"] is False
        assert 29 < found["certificate_days"] < 31
        done = outpost.fleet("retire", "shop")
        assert len(done["revoked"]) == 1
        assert json.loads(outpost.type("ca", "list", "--ca", ca, "--json")[1])[0]["state"] == "revoked"
        assert outpost.fleet("retire", "shop", "--ca", ca)["retired"] is True, "again does no harm"


def test_who_is_gone_is_told_and_hides_nothing(outpost: Outpost) -> None:
    agent = outpost.agent()
    wait_for("the source", lambda: continuous(outpost), agent)
    found = outpost.source()
    assert found["version"]
    assert found["tracker"] == "nbd"
    assert "CPython" in found["platform"]
    assert found["known_by"] == ["store", "broker"]
    code, shown, _ = outpost.type("fleet")
    assert code == 0
    assert max(map(len, shown.splitlines())) <= 80, shown

    outpost.target.popen.kill()
    outpost.target.popen.wait()
    wait_for("the target's end", lambda: "target" in outpost.fleet()["unknown"])
    found = outpost.source()
    assert found["connected"] is True, "the broker sees it"
    assert found["newest_point"]
    wait_for("its state", lambda: outpost.source()["state"] == "DISCONNECTED", agent)
    target = outpost.here.kill_target(outpost.target)
    wait_for("the source", lambda: continuous(outpost), agent, target)

    with stopped(outpost, outpost.orchestrator):
        found = outpost.fleet()
        assert "no connection" in found["unknown"]["broker"]
        (shop,) = found["sources"]
        assert shop["connected"] is True, "the store sees its session"
        assert shop["version"], "from the registry"
        assert shop["newest_point_age_seconds"] < 60
    outpost.start()

    agent.popen.kill()
    agent.popen.wait()
    outpost.here._running.remove(agent)
    wait_for("its silence", lambda: outpost.source()["silent_since_ns"])
    assert outpost.fleet()["silent"] == 1
    assert "silent" in outpost.type("fleet")[1]

    store = outpost.target.store
    store.rename(store.with_name("away"))
    wait_for("the store's absence", lambda: "store" in outpost.fleet()["unknown"])
    found = outpost.fleet()
    assert [each["source"] for each in found["sources"]] == ["shop"], "the registry knows it"
    store.with_name("away").rename(store)


def test_a_source_is_retired_when_it_is_stopped_and_comes_back_when_it_is_added(outpost: Outpost) -> None:
    agent = outpost.agent()
    wait_for("the source", lambda: continuous(outpost), agent)
    code, _, err = outpost.type("fleet", "retire", "shop")
    assert code == 213
    assert "'shop' is connected" in err
    assert "nothing is known of a source 'web'" in outpost.type("fleet", "retire", "web")[2]
    assert outpost.fleet("retire", "shop", "--force") == {"source": "shop", "retired": True, "revoked": []}
    wait_for("its end", lambda: agent.ask("status")["state"] != "CONTINUOUS", agent)
    assert outpost.source()["retired_ns"]
    assert outpost.fleet()["expected"] == 0
    code, told, _ = outpost.type("audit", "show", str(outpost.folder / "state"), "--json")
    assert code == 0
    assert "source.retire" in told
    assert outpost.type("source", "add", "shop")[0] == 0
    wait_for("its return", lambda: continuous(outpost) and not outpost.source()["retired_ns"], agent)


def test_an_upgrade_that_can_not_be_says_why(outpost: Outpost) -> None:
    code, _, err = outpost.type("fleet", "upgrade", "--status")
    assert code == 219
    assert "--to VERSION" in err
    code, _, err = outpost.type("fleet", "upgrade", "--to", "9.9")
    assert code == 215
    assert "no authority is known" in err
    assert outpost.type("fleet", "upgrade", "--resume")[0] == 219
    assert outpost.type("fleet", "upgrade")[0] == 2
    assert outpost.type("fleet", "upgrade", "--to", "1", "--limit", "soon")[0] == 2


def test_commands_need_no_orchestrator(outpost: Outpost) -> None:
    """A policy is told from here then, where the broker lives elsewhere."""
    with stopped(outpost, outpost.orchestrator):
        assert outpost.fleet("policy", "set", "*", "cuts=quiet")["version"] == 1
        code, shown, _ = outpost.type("fleet", "policy")
        assert code == 0
        assert "quiet" in shown
