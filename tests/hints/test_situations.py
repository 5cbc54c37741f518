"""Somebody types what a hint says, in the situation that shows it, and gets on."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from drengine.cli.main import app
from drengine.config.bandwidth import BandwidthSchedule
from drengine.model.errors import error_kinds
from drengine.process import find_marked
from drengine.store.blobs.s3.errors import OBJECT_STORE_AWAY, OBJECT_STORE_REGION
from drengine.store.care.retention import RetentionPolicy
from drengine.store.identity import read_store_file, write_store_file
from drengine.store.store import Store
from drengine.terminal import main
from drengine_agent.cli.main import commands as agent_app
from tests.failover.engine.disks import disks_served
from tests.recovery.replica import make
from tests.s3.server import S3Server
from tests.s3.stores import place

pytestmark = pytest.mark.timeout(120)
TRIED: dict[str, Callable[..., None]] = {}
"""What hints say between backticks and is typed here, with the test that does."""

BOOK = """
version: 1
name: shop
sources:
  shop:
    launch:
      driver: command
      settings: {run: RUN, environment: {WHOSE: PLACE}}
    FENCE
waves:
  - name: all
    sources: [shop]
    STEPS
"""
APPROVAL = 'before: [{approval: {prompt: "really?", by: [ann]}}]'


def tries(*quoted: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Marks a test that types these; it has to find them in the hint."""

    def mark(test: Callable[..., None]) -> Callable[..., None]:
        TRIED.update({f"`{each}`": test for each in quoted})
        return test

    return mark


@dataclass
class Person:
    """Somebody at a prompt."""

    directory: Path
    capture: Any
    out: str = ""
    hint: str = ""
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    serving: ExitStack = field(default_factory=ExitStack)

    def types(self, *words: str, exit_code: int | None = 0) -> str:
        """Type a command; with an exit code of None it may end anyhow."""
        program, *rest = words
        commands = agent_app if program == "drengine-agent" else app
        code = main(commands, rest)
        self.out, said = self.capture.readouterr()
        assert exit_code in (code, None), f"{words}: {code}\n{self.out}\n{said}"
        assert "Traceback" not in said
        return str(said)

    def meets(self, id: str, *words: str) -> None:
        """Type something that ends with this error; its hint is remembered."""
        said = self.types(*words, exit_code=None)
        assert f"[{id}]" in said, said
        self.hint = said.partition("hint:")[2].strip()

    def follows(self, quoted: str, *more: str, exit_code: int = 0, **filled: str) -> str:
        """Type what the hint says, upper case filled in."""
        said = re.sub("RUN", filled.get("run", "RUN"), quoted)
        assert f"`{quoted}`" in self.hint or f"`{said}`" in self.hint, self.hint
        words = [filled[word.lower()] if word.isupper() else word for word in shlex.split(quoted)]
        self.types(*words, *more, exit_code=exit_code)
        return self.out

    @contextmanager
    def acting_as(self, name: str, *roles: str) -> Iterator[None]:
        """As an account, which is made if roles are given."""
        if roles:
            self.knows(name, *roles)
        token = self._quietly("user", "token", "create", name).strip()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DRENGINE_TOKEN", token)
            yield

    def knows(self, name: str, *roles: str) -> None:
        """There is such an account, with these roles."""
        if f" {name} " in f" {' '.join(self._quietly('user', 'list').split())} ":
            self._quietly("user", "role", name, *roles)
        else:
            given = [each for role in roles for each in ("--role", role)]
            self._quietly("user", "add", name, "--no-password", *given)

    def _quietly(self, *words: str) -> str:
        """Type something beside the story."""
        assert main(app, list(words)) == 0
        return str(self.capture.readouterr()[0])

    def book(self, *, run: str = "[sleep, '600']", fence: str = "fence: {command: ['true']}", steps: str = "") -> str:
        socket = self.directory / "nbd.sock"
        if not socket.exists():
            self.serving.enter_context(disks_served(self.directory / "store", socket))
        if "approval" in steps:
            self.knows("ann", "approver")  # nobody begins what nobody may approve
        text = BOOK.replace("RUN", run).replace("FENCE", fence).replace("STEPS", steps)
        path = self.directory / "shop.yaml"
        path.write_text(text.replace("PLACE", str(self.directory)))
        return str(path)

    def run(self) -> str:
        """The newest run's id."""
        self.types("drengine", "runs", "--json")
        return str(json.loads(self.out)[0]["run"])


@pytest.fixture
def person(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Person]:
    make(tmp_path / "store")
    monkeypatch.setenv("DRENGINE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("DRENGINE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("DRENGINE_EXPORT", f"unix:{tmp_path / 'nbd.sock'}")
    monkeypatch.delenv("DRENGINE_CONFIG", raising=False)
    monkeypatch.delenv("DRENGINE_TOKEN", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    somebody = Person(tmp_path, capsys)
    with somebody.serving:
        yield somebody
    for each in somebody.started:
        each.kill()
        each.communicate()
    for pid in find_marked("WHOSE", str(tmp_path)):
        subprocess.run(["kill", "-9", str(pid)], check=False)


# --- points and stores


@tries("drengine store check", "drengine store place --store DIR PLACE")
def test_an_object_store_that_is_not_where_it_was(person: Person, s3: S3Server, bucket: str) -> None:
    """The endpoint's port is wrong, as a region could be; the hints lead to what is wrong and to its mending."""
    directory = str(person.directory / "objects")
    right, wrong = place(s3.endpoint, bucket), place("http://127.0.0.1:9", bucket)
    person.types("drengine", "store", "create", directory, "--storage", "s3", "--place", right)
    file = read_store_file(Path(directory))
    write_store_file(Path(directory), file._replace(storage=file.storage._replace(place=wrong)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRENGINE_STORE", directory)
        person.meets("object-store-away", "drengine", "store", "check")
        person.follows("drengine store check", exit_code=OBJECT_STORE_AWAY.exit_code)
        person.hint = OBJECT_STORE_REGION.hint
        person.follows("drengine store place --store DIR PLACE", dir=directory, place=right)
        person.types("drengine", "store", "check")


@tries("drengine status")
def test_a_source_that_is_not_there(person: Person) -> None:
    person.meets("unknown-source", "drengine", "points", "--source", "nope")
    assert "shop" in person.follows("drengine status")


@tries("drengine status")
def test_a_source_whose_agent_told_nothing_of_its_server(person: Person) -> None:
    person.meets("inventory-unknown", "drengine", "inventory", "shop")
    assert "not connected" in person.follows("drengine status")


def test_several_sources(person: Person) -> None:
    make(person.directory / "store", seed=2, source="bank")
    person.meets("source-needed", "drengine", "points")
    assert "--source" in person.hint
    for name in ("shop", "bank"):
        assert name in person.follows("drengine status")
        person.types("drengine", "points", "--source", name)


@tries("drengine points")
def test_a_point_that_is_not_there(person: Person) -> None:
    person.meets("unknown-point", "drengine", "verify", "yesterday")
    point = person.follows("drengine points").splitlines()[-1].split()[0]
    person.types("drengine", "verify", point)


def test_a_point_that_can_not_be(person: Person) -> None:
    person.meets("bad-point", "drengine", "verify", "before:yesterday")
    point = person.follows("drengine points").splitlines()[-1].split()[0]
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 1))  # the replica was received just now
    for text in (point, "latest", f"before:{now}", "cut 1"):
        person.types("drengine", "verify", text)
    assert re.findall(r"`(before:[^`]+)`", person.hint) == ["before:2026-11-23T10:00:00Z"]


def test_a_label_that_a_point_may_not_have(person: Person) -> None:
    for label in ("latest", "20261125", "1-5", "before:noon", "label:x"):
        person.meets("bad-label", "drengine-agent", "cut", "--label", label)
    config = str(person.directory / "none.toml")
    person.meets("bad-config", "drengine-agent", "cut", "--label", "before the upgrade", "--config", config)


@tries("drengine targets")
def test_a_target_that_is_not_there(person: Person) -> None:
    person.meets("unknown-target", "drengine", "target", "drain", "nobody")
    person.follows("drengine targets")


@tries("drengine branches")
def test_a_branch_that_is_not_there(person: Person) -> None:
    with Store.open(person.directory / "store") as store:
        branch = store.create_branch(store.points("shop")[0]).number
    person.meets("unknown-branch", "drengine", "branches", "--drop", "7")
    assert str(branch) in person.follows("drengine branches")
    person.types("drengine", "branches", "--drop", str(branch))


@tries("drengine points --json")
def test_a_volume_that_is_not_there(person: Person) -> None:
    person.meets("unknown-volume", "drengine", "export", "--volume", "nope")
    assert json.loads(person.follows("drengine points --json"))[0]["volumes"][0]["name"] == "data"


@tries("drengine scrub")
def test_data_that_is_damaged(person: Person) -> None:
    segment = next((person.directory / "store").rglob("*.seg"))
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    person.meets("damaged", "drengine", "verify", "latest")
    whole = [line for line in person.follows("drengine points").splitlines()[1:] if "DAMAGED" not in line]
    person.follows("drengine scrub", exit_code=43)
    with Store.open(person.directory / "store") as store:
        assert store.damaged_ranges("shop"), "the source is asked for these"
    if whole:
        person.types("drengine", "verify", whole[-1].split()[0])


@tries("drengine target init --store DIR")
def test_a_directory_that_is_no_store(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = person.directory / "empty"
    monkeypatch.setenv("DRENGINE_STORE", str(empty))
    person.meets("not-a-store", "drengine", "points")
    person.follows("drengine target init --store DIR", dir=str(empty))
    person.meets("source-needed", "drengine", "points")


@tries("drengine rebuild")
def test_a_catalogue_that_is_lost(person: Person) -> None:
    for file in (person.directory / "store").glob("catalogue.sqlite*"):
        file.unlink()
    person.meets("catalogue-damaged", "drengine", "points")
    person.follows("drengine rebuild")
    person.types("drengine", "verify", "latest")


def test_a_stores_identity_that_is_damaged(person: Person) -> None:
    identity = person.directory / "store/STORE"
    data = bytearray(identity.read_bytes())
    data[12] ^= 1
    identity.write_bytes(data)
    person.meets("store-identity-damaged", "drengine", "points")
    person.follows("drengine rebuild")
    person.types("drengine", "verify", "latest")


@tries("drengine mirror --detach COPY")
def test_a_copy_that_is_to_be_the_store(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    store, copy = str(person.directory / "store"), str(person.directory / "copy")
    person.types("drengine", "mirror", store, copy)
    person.meets("store-is-copy", "drengine", "pin", "latest", "--store", copy)
    person.follows("drengine mirror --detach COPY", copy=copy)
    person.types("drengine", "pin", "latest", "--store", copy)
    person.meets("mirror-parted", "drengine", "mirror", store, copy)
    assert "an empty directory" in person.hint
    person.types("drengine", "mirror", store, copy + "-2")
    person.meets("not-its-copy", "drengine", "mirror", store, store)


@tries("drengine keys init", "drengine keys status")
def test_a_store_in_clear_where_an_encrypted_one_is_expected(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    key = person.directory / "store.key"
    person.types("drengine", "keys", "generate", str(key))
    monkeypatch.setenv("DRENGINE_KEY_FILE", str(key))
    person.meets("store-in-clear", "drengine", "points")
    person.follows("drengine keys init")
    person.types("drengine", "points")
    person.meets("store-in-clear", "drengine", "keys", "forget", "shop", "--confirm", "shop")
    person.follows("drengine keys status")
    assert "in clear still" in person.out
    monkeypatch.delenv("DRENGINE_KEY_FILE")
    person.meets("key-needed", "drengine", "points")


def test_a_retention_policy_and_a_schedule_of_bandwidth() -> None:
    hints = {kind.id: kind.hint for kind in error_kinds()}
    (policy,) = re.findall(r'"([^"]+)"', hints["bad-retention"])
    assert RetentionPolicy.parse(policy)
    schedules = re.findall(r"`([^`]+)`", hints["bad-bandwidth-schedule"])
    assert len([BandwidthSchedule.parse(each) for each in schedules]) == 3


# --- restores


def test_a_destination_that_is_there(person: Person) -> None:
    disk = person.directory / "disk.img"
    disk.write_bytes(b"old")
    words = ("drengine", "restore", "latest", "--to", f"data={disk}")
    person.meets("destination-exists", *words)
    assert "--overwrite" in person.hint
    person.types(*words, "--overwrite")


def test_destinations_that_do_not_fit_the_volumes(person: Person) -> None:
    person.meets("bad-destination", "drengine", "restore", "latest", "--to", "disk.img")
    assert "--to DIRECTORY" in person.hint and "--to VOLUME=PATH" in person.hint
    (person.directory / "out").mkdir()
    person.types("drengine", "restore", "latest", "--to", str(person.directory / "out"))
    person.types("drengine", "restore", "latest", "--to", f"data={person.directory / 'disk.img'}")


# --- runbooks and runs


@tries("drengine runbook validate FILE")
def test_a_runbook_with_mistakes(person: Person) -> None:
    book = Path(person.book())
    book.write_text(book.read_text().replace("driver:", "drivr:").replace("version: 1", "version: 2"))
    person.meets("bad-runbook", "drengine", "drill", str(book))
    assert person.follows("drengine runbook validate FILE", file=str(book), exit_code=103).count("unknown-key") == 1


@tries("drengine runbook list")
def test_a_runbook_that_is_not_there(person: Person) -> None:
    person.types("drengine", "drill", person.book())
    person.meets("unknown-runbook", "drengine", "drill", "shopp")
    assert "shop" in person.follows("drengine runbook list")
    person.types("drengine", "drill", "shop")


def test_a_runbook_that_is_there_already(person: Person) -> None:
    place = str(person.directory / "first.yaml")
    person.types("drengine", "runbook", "init", "shop", "--output", place)
    person.meets("runbook-exists", "drengine", "runbook", "init", "shop", "--output", place)
    person.types("drengine", "runbook", "init", "shop", "--output", str(person.directory / "second.yaml"))


@tries("drengine run show RUN", "drengine run resume RUN")
def test_a_run_that_failed(person: Person) -> None:
    go = person.directory / "go"
    steps = f"then: [{{command: [test, -e, {go}], timeout: 5s}}]"
    person.meets("run-failed", "drengine", "failover", person.book(steps=steps))
    run = person.run()
    assert "all.then.1" in person.follows("drengine run show RUN", run=run)
    go.touch()
    person.follows("drengine run resume RUN", run=run)


@tries("drengine rollback RUN")
def test_a_run_that_failed_and_is_undone(person: Person) -> None:
    person.meets("run-failed", "drengine", "failover", person.book(steps="then: [{command: ['false']}]"))
    run = person.run()
    told = person.follows("drengine rollback RUN", run=run, exit_code=106)
    (then,) = set(re.findall(r"then: (drengine run resume \S+ --done \S+)", told))  # no broker: release it by hand
    person.meets("run-failed", *shlex.split(then))
    assert "rolled-back" in person.out and "resume" not in person.hint


def test_a_drill_that_failed(person: Person) -> None:
    person.meets("run-failed", "drengine", "drill", person.book(run="['false']"))
    assert "launch:shop" in person.follows("drengine run show RUN", run=person.run())
    assert "resume" not in person.hint and "rollback" not in person.hint
    person.types("drengine", "drill", person.book())


@tries("drengine ready RUNBOOK")
def test_a_run_that_could_not_go_through(person: Person) -> None:
    book = person.book(run="[/no/such/program]")
    person.meets("not-ready", "drengine", "failover", book)
    assert "program:/no/such/program" in person.out
    person.hint = next(kind.hint for kind in error_kinds() if kind.id == "not-ready")
    told = person.follows("drengine ready RUNBOOK", runbook=book, exit_code=225)
    assert re.search(r"program:/no/such/program +blocks", told)
    run = person.run()
    person.meets("unknown-check", "drengine", "run", "resume", run, "--despite", "progam")
    assert "'program'" in person.hint
    person.meets("run-failed", "drengine", "run", "resume", run, "--despite", "program")
    person.types("drengine", "abort", run)
    person.meets("not-ready", "drengine", "drill", book)
    person.follows("drengine ready shop", exit_code=225)


def test_a_source_that_can_not_be_fenced(person: Person) -> None:
    person.meets("unfenced", "drengine", "failover", person.book(fence=""))
    assert "--force" in person.hint
    person.follows("drengine run resume RUN", "--force", run=person.run())


@tries("drengine approve RUN")
def test_a_run_that_waits_for_approval(person: Person) -> None:
    person.meets("run-waiting", "drengine", "failover", person.book(steps=APPROVAL), "--no-wait")
    run = person.run()
    with person.acting_as("ann", "approver"):
        person.follows("drengine approve RUN", run=run)
    person.follows("drengine run resume RUN", run=run)


def test_an_approval_by_somebody_who_may_not(person: Person) -> None:
    person.types("drengine", "failover", person.book(steps=APPROVAL), "--no-wait", exit_code=108)
    run = person.run()
    with person.acting_as("eve", "approver"):
        person.meets("bad-approval", "drengine", "approve", run)
    assert "ann" in person.follows("drengine run show RUN", run=run)
    with person.acting_as("ann", "approver"):
        person.meets("approval-stale", "drengine", "approve", run, "--digest", "0" * 64)
        person.follows("drengine run show RUN", run=run)
        person.types("drengine", "approve", run)


def test_a_run_that_its_beginner_may_not_approve(person: Person) -> None:
    steps = APPROVAL.replace(", by: [ann]", "")
    person.types("drengine", "failover", person.book(steps=steps), "--no-wait", exit_code=108)
    run = person.run()
    person.meets("self-approval", "drengine", "approve", run)
    person.follows("drengine run show RUN", run=run)
    with person.acting_as("ann", "approver"):
        person.types("drengine", "approve", run)


@tries("drengine approve RUN approve-force")
def test_a_run_that_nobody_forces_alone(person: Person) -> None:
    book = Path(person.book(fence=""))
    book.write_text(book.read_text().replace("name: shop", "name: shop\nforce_by: ['role:approver']", 1))
    person.types("drengine", "failover", str(book), exit_code=107)
    run = person.run()
    person.meets("approval-needed", "drengine", "run", "resume", run, "--force")
    with person.acting_as("ann", "approver", "operator"):
        person.follows("drengine approve RUN approve-force", run=run)
        person.meets("approval-needed", "drengine", "run", "resume", run, "--force")
    person.types("drengine", "run", "resume", run, "--force")


@tries("drengine user list", "drengine user password NAME", "drengine user token create NAME", "drengine login NAME")
def test_somebody_who_is_not_signed_in(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    (person.directory / "password").write_text("one that is long\n")
    given = ["--password-file", str(person.directory / "password")]
    person.types("drengine", "user", "add", "ann", "--role", "operator", "--no-password")
    monkeypatch.setenv("DRENGINE_TOKEN", "drengine_0_wrong")
    person.meets("not-signed-in", "drengine", "runs")
    person.follows("drengine user token create NAME", name="ann")
    monkeypatch.setenv("DRENGINE_TOKEN", person.out.strip())
    person.types("drengine", "runs")
    person.meets("sign-in-failed", "drengine", "login", "ann", *given)
    assert "ann" in person.follows("drengine user list")
    person.follows("drengine user password NAME", *given, name="ann")
    monkeypatch.delenv("DRENGINE_TOKEN")
    person.hint = "`drengine login NAME`"  # of not-signed-in
    person.follows("drengine login NAME", *given, name="ann")
    person.types("drengine", "run", "show", "nope", exit_code=102)
    person.types("drengine", "logout")
    person.meets("bad-account", "drengine", "user", "remove", "nobody")
    person.follows("drengine user list")


@tries("drengine user role NAME")
def test_somebody_who_may_not(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    person.types("drengine", "runbook", "list")
    with person.acting_as("vic", "viewer"):
        person.meets("not-permitted", "drengine", "drill", person.book())
    person.follows("drengine user role NAME", "admin", name="vic")
    with person.acting_as("vic"):
        person.types("drengine", "drill", person.book())


@tries("drengine abort RUN")
def test_a_source_that_another_run_holds(person: Person) -> None:
    book = person.book(steps=APPROVAL)
    person.types("drengine", "failover", book, "--no-wait", exit_code=108)
    run = person.run()
    person.meets("run-active", "drengine", "drill", book)
    assert run in person.follows("drengine run show RUN", run=run)
    person.follows("drengine abort RUN", run=run)
    person.types("drengine", "drill", person.book())


def test_a_run_that_was_aborted(person: Person) -> None:
    steps = APPROVAL.replace("before:", "then:")
    program = [sys.executable, "-m", "drengine.cli.main", "failover", person.book(steps=steps)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        while "all.then.1: waiting" not in (line := waiting.stdout.readline()):
            assert line
        run = person.run()
        person.types("drengine", "abort", run)
        _, said = waiting.communicate(timeout=60)
        assert waiting.returncode == 109 and "[run-aborted]" in said
    person.hint = said.partition("hint:")[2]
    assert "all.then.1" in person.follows("drengine run show RUN", run=run)
    person.follows("drengine rollback RUN", run=run, exit_code=106)
    assert "undo.hand-back:shop: done" in person.out


@tries("drengine runs")
def test_a_run_that_is_not_known(person: Person) -> None:
    person.types("drengine", "drill", person.book())
    person.meets("unknown-run", "drengine", "run", "show", "nope")
    assert person.run() in person.follows("drengine runs")


def test_a_run_in_another_state(person: Person) -> None:
    person.meets("run-state", "drengine", "failback", person.book())
    person.follows("drengine runs")
    assert "trunk" in person.follows("drengine branches")


@tries("drengine reports list")
def test_a_report_that_can_not_be_written(person: Person) -> None:
    person.types("drengine", "drill", person.book())
    run = person.run()
    nowhere = str(person.directory / "no/such/folder/report.html")
    person.meets("report-unavailable", "drengine", "reports", "export", run, "--output", nowhere)
    assert run in person.follows("drengine reports list")
    person.types("drengine", "reports", "export", run, "--output", str(person.directory / "report.html"))


# --- agents


def test_a_configuration_that_is_there_already(person: Person) -> None:
    (person.directory / "disk.img").write_bytes(bytes(1 << 20))
    volume = ["--volume", f"data={person.directory / 'disk.img'}"]
    words = ["drengine-agent", "protect", "--source", "shop", "--target", "127.0.0.1:1", *volume, "--config"]
    person.types(*words, str(person.directory / "a.toml"))
    person.meets("config-exists", *words, str(person.directory / "a.toml"))
    assert "--config" in person.hint
    person.types(*words, str(person.directory / "b.toml"))


def running_agent(person: Person) -> tuple[str, int]:
    """An agent without a target: its configuration and process."""
    (person.directory / "disk.img").write_bytes(bytes(1 << 20))
    config = str(person.directory / "agent.toml")
    words = ["--source", "shop", "--target", "127.0.0.1:1", "--volume", f"data={person.directory / 'disk.img'}"]
    words += ["--state-directory", str(person.directory / "agent"), "--tracker", "scan", "--config", config]
    person.types("drengine-agent", "protect", *words)
    person.meets("agent-not-running", "drengine-agent", "status", "--config", config)
    assert "--config" in person.hint
    program = [sys.executable, "-m", "drengine_agent.cli.main", "run", "--config", config]
    agent = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)
    person.started.append(agent)
    assert agent.stderr is not None
    while main(agent_app, ["status", "--config", config]):
        assert agent.poll() is None
        assert agent.stderr.readline()
    person.capture.readouterr()
    return config, agent.pid


@tries("drengine grant list")
def test_a_grant_that_is_gone(person: Person) -> None:
    person.types("drengine", "grant", "give", "latest", "--to", "host/r1", "--json")
    given = json.loads(person.out)["id"]
    person.types("drengine", "grant", "take", given)
    person.meets("grant-missing", "drengine", "grant", "take", given)
    assert given not in person.follows("drengine grant list")


@tries("drengine-agent status")
def test_an_agent_that_runs_already(person: Person) -> None:
    config, pid = running_agent(person)
    person.meets("agent-running", "drengine-agent", "run", "--config", config)
    assert str(pid) in person.follows("drengine-agent status", "--config", config)


@tries("drengine-agent resume")
def test_an_agent_that_was_paused(person: Person) -> None:
    config, _ = running_agent(person)
    person.types("drengine-agent", "pause", "--config", config)
    person.meets("agent-command-refused", "drengine-agent", "sync", "--config", config)
    person.follows("drengine-agent resume", "--config", config)
    person.types("drengine-agent", "sync", "--config", config)
