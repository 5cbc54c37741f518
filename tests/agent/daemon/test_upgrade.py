"""Replacing the agent's own program: what is refused, what is tried first, and what a start says after a kill."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.devices import until
from drengine.enrolment.messages import AgentAnswer
from drengine.enrolment.place import Place
from drengine.identity.errors import EnrolmentError
from drengine.model.errors import DrengineError
from drengine_agent.daemon import upgrade as module
from drengine_agent.daemon.upgrade import BEFORE_FILE, FILE, FOLDER, LOCK_FILE, STATE_FILE, Upgrade
from drengine_agent.errors import UPGRADE_REFUSED
from drengine_agent.program import PACKAGED

OLD, NEW = b"the old program", b"the new program"
WANTED = AgentAnswer("2.0", hashlib.sha256(NEW).hexdigest(), len(NEW))


class Host:
    """An installed agent, with what its new file would say and do."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.program, self.state = folder / "program", folder / "state"
        self.program.write_bytes(OLD)
        self.state.mkdir()
        self.ran: list[list[str]] = []
        self.codes = {"try": (0, ""), "install": (0, "")}
        self.restarted = 0
        self.may_install = asyncio.Event()
        self.may_install.set()
        self.place = Place(folder / "identity")
        self.place.make()
        (self.place.folder / "authority.json").write_text('{"address": "127.0.0.1:1"}')
        monkeypatch.setattr(module, "PROGRAM", self.program)
        monkeypatch.setattr(module, "fetch_agent", self.fetch)
        monkeypatch.setattr(module, "_has_systemd", lambda: False)

    async def fetch(self, place: Place, wanted: AgentAnswer, to: Path) -> None:
        await asyncio.to_thread(to.write_bytes, NEW)

    async def run(self, words: list[str], seconds: float, output: Path, stdin: int) -> tuple[int, str]:
        self.ran.append(words)
        what = "try" if "--dry-run" in words else "install"
        if what == "install":
            assert self.is_locked(), "nobody else installs meanwhile"
            await self.may_install.wait()
            if not self.codes[what][0]:
                self.program.write_bytes(NEW)
        return self.codes[what]

    def is_locked(self) -> bool:
        with (self.state / LOCK_FILE).open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def start(self, program: Path | None = None, place: Place | None = None) -> Upgrade:
        def restart() -> None:
            self.restarted += 1

        return Upgrade(
            self.state, place or self.place, restart=restart, program=program or self.program, run=self.run
        )  # fmt: skip

    def kept(self) -> dict[str, Any]:
        return dict(json.loads((self.state / STATE_FILE).read_text()))


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


async def test_it_is_tried_before_anything_is_replaced_and_then_the_process_starts_anew(there: Host) -> None:
    upgrade = there.start()
    answered = await upgrade.order(WANTED)
    assert answered["state"] == "installing"
    assert there.kept()["state"] == "installing", "durable before the installer begins"
    assert upgrade._installing is not None
    await upgrade._installing
    assert ["--dry-run" in words for words in there.ran] == [True, False]
    assert all(str(there.state / FOLDER / FILE) in words for words in there.ran)
    assert (there.state / FOLDER / BEFORE_FILE).read_bytes() == OLD, "to go back to"
    assert there.restarted == 1
    assert there.start().told() == {
        "sha256": WANTED.sha256, "state": "installed", "to": WANTED.sha256, "version": "2.0", "number": "1",
    }  # fmt: skip


async def test_what_runs_already_is_not_fetched_again(there: Host) -> None:
    there.program.write_bytes(NEW)
    assert (await there.start().order(WANTED))["sha256"] == WANTED.sha256
    assert not there.ran


async def test_a_file_that_does_not_want_to_run_changes_nothing(there: Host) -> None:
    there.codes["try"] = (93, 'noise\n{"error": "doctor-refuses", "message": "no BPF here"}\n')
    upgrade = there.start()
    with pytest.raises(DrengineError) as refused:
        await upgrade.order(WANTED)
    assert refused.value.kind is UPGRADE_REFUSED
    assert "no BPF here [doctor-refuses]" in refused.value.message
    assert there.program.read_bytes() == OLD
    assert not (there.state / STATE_FILE).exists()


async def test_an_installer_that_fails_is_told_and_the_old_program_goes_on(there: Host) -> None:
    there.codes["install"] = (92, "error: no room\n")
    upgrade = there.start()
    await upgrade.order(WANTED)
    assert upgrade._installing is not None
    await upgrade._installing
    told = upgrade.told()
    assert (told["state"], told["message"]) == ("failed", "error: no room")
    assert there.restarted == 0
    assert there.start().told()["state"] == "failed", "also after a restart"
    there.codes["install"] = (0, "")
    assert (await there.start().order(WANTED))["state"] == "installing", "and it may be tried again"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda there: {"program": PACKAGED}, "package manager"),
        (lambda there: {"program": there.state / "elsewhere"}, "was not installed by itself"),
        (lambda there: {"place": Place(there.state / "nobody")}, "not enrolled"),
    ],
)
async def test_a_program_that_somebody_else_keeps_is_left_alone(
    there: Host, change: Callable[[Host], dict[str, Any]], said: str
) -> None:
    with pytest.raises(DrengineError) as refused:
        await there.start(**change(there)).order(WANTED)
    assert refused.value.kind is UPGRADE_REFUSED
    assert said in refused.value.message
    assert not there.ran


@pytest.mark.parametrize("size", [0, -1, 1 << 40])
async def test_a_size_that_no_agent_has_is_refused_before_anything_is_read(there: Host, size: int) -> None:
    with pytest.raises(DrengineError) as refused:
        await there.start().order(AgentAnswer("2.0", WANTED.sha256, size))
    assert refused.value.kind is UPGRADE_REFUSED
    assert not (there.state / FOLDER).exists()


async def test_another_file_than_the_order_names_is_not_run(there: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def other(place: Place, wanted: AgentAnswer, to: Path) -> None:
        raise EnrolmentError("agent-other", "another one")

    monkeypatch.setattr(module, "fetch_agent", other)
    with pytest.raises(DrengineError):
        await there.start().order(WANTED)
    assert not there.ran


@pytest.mark.parametrize("replaced", [False, True])
def test_a_start_after_a_kill_says_which_program_it_is(there: Host, replaced: bool) -> None:
    """Killed between `installing` and the end: before the program was replaced, or after it."""
    there.state.joinpath(STATE_FILE).write_text(
        json.dumps({"state": "installing", "version": "2.0", "sha256": WANTED.sha256})
    )
    if replaced:
        there.program.write_bytes(NEW)
    told = there.start().told()
    assert told["state"] == ("installed" if replaced else "failed")
    assert told["sha256"] == hashlib.sha256(there.program.read_bytes()).hexdigest()
    assert there.start().told() == told


async def test_while_an_installer_is_at_work_that_outlived_its_agent_nothing_else_is_installed(there: Host) -> None:
    there.state.joinpath(STATE_FILE).write_text(
        json.dumps({"state": "installing", "version": "2.0", "sha256": WANTED.sha256})
    )
    with (there.state / LOCK_FILE).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        upgrade = there.start()
        assert upgrade.told()["state"] == "installing"
        assert (await upgrade.order(WANTED))["state"] == "installing", "it is what the order wants"
        with pytest.raises(DrengineError, match="under way"):
            await upgrade.order(AgentAnswer("3.0", "0" * 64, 5))
        assert not there.ran
        there.program.write_bytes(NEW)
        assert upgrade.told()["state"] == "installing"
    assert upgrade.told()["state"] == "installed"
    assert there.restarted == 1, "this process is the old program still"


async def test_an_order_that_is_given_again_joins_the_first(there: Host) -> None:
    upgrade = there.start()
    there.may_install.clear()
    answers = await asyncio.gather(upgrade.order(WANTED), upgrade.order(WANTED))
    assert [each["state"] for each in answers] == ["installing", "installing"]
    assert upgrade._installing is not None
    there.may_install.set()
    await upgrade._installing
    assert len(there.ran) == 2


INSTALLER = """
import os, pathlib, sys
if "--dry-run" not in sys.argv:
    here = pathlib.Path(__file__).parents[2]
    pathlib.Path(here, "begun").touch()
    open(here / "go", "rb").read()
    print("installed", flush=True)
    if pathlib.Path(__file__).name == "drengine-agent":
        pathlib.Path(here, "program").write_bytes(pathlib.Path(__file__).read_bytes())
"""
AGENT = """
import asyncio, hashlib, pathlib, sys
from drengine.enrolment.messages import AgentAnswer
from drengine.enrolment.place import Place
from drengine_agent.daemon import upgrade as module

async def fetch(place, wanted, to):
    to.write_bytes(new)

async def main():
    upgrade = module.Upgrade(here / "state", Place(here / "identity"), restart=lambda: None, program=here / "program")
    await upgrade.order(AgentAnswer("2.0", hashlib.sha256(new).hexdigest(), len(new)))
    await asyncio.sleep(3600)

here, new = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[1], "new").read_bytes()
module.PROGRAM, module.fetch_agent, module._has_systemd = here / "program", fetch, lambda: False
asyncio.run(main())
"""


def test_an_installer_whose_agent_is_killed_goes_on_and_the_next_process_waits_for_it(there: Host) -> None:
    """Real processes: what the installer prints has to go somewhere, and its lock has to stay."""
    here = there.state.parent
    (here / "new").write_text(INSTALLER)
    os.mkfifo(here / "go")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    agent = subprocess.Popen([sys.executable, "-c", AGENT, str(here)], env=environment)
    try:
        until((here / "begun").exists, "the installer")
    finally:
        agent.send_signal(signal.SIGKILL)
        agent.wait()
    following = there.start()
    assert following.told()["state"] == "installing"
    (here / "go").write_bytes(b"")
    until(lambda: following.told()["state"] != "installing", "its end")
    assert (following.told()["state"], there.restarted) == ("installed", 1)
    assert there.program.read_text() == INSTALLER


@pytest.mark.parametrize("content", ["", "{", '{"state": 5}'])
def test_a_damaged_record_is_no_upgrade(there: Host, content: str) -> None:
    there.state.joinpath(STATE_FILE).write_text(content)
    assert there.start().told() == {"sha256": hashlib.sha256(OLD).hexdigest()}
