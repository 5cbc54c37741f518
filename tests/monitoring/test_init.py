"""`drengine monitoring init`: what it writes, once and again; what a person changed is never overwritten unsaid."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from drengine.console.places import PREFIX
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.monitoring.discovery import SharingTarget, target_groups
from drengine.monitoring.files import ASIDE, LIST, State, Wanted, write_files
from drengine.monitoring.options import MonitoringOptions
from drengine.people.accounts import Accounts, accounts_file
from drengine.people.door import FILE
from drengine.people.roles import Role
from tests.console.rig import Api, served
from tests.failover.report.runs import TEXT
from tests.typed import DRENGINE, typed


class Site:
    """An orchestrator's file, and the command."""

    def __init__(self, folder: Path) -> None:
        self.state, self.out = folder / "state", folder / "out"
        self.file = folder / "orchestrator.toml"
        self.file.write_text(f'store = "{folder}/store"\nstate = "{self.state}"\nmetrics = "127.0.0.1:9441"\n')
        self.book = folder / "shop.yaml"
        self.book.write_text(TEXT)

    def say(self, *arguments: str, status: int = 0) -> tuple[Any, str]:
        done = typed(DRENGINE, "monitoring", *arguments, "--config", self.file)
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return json.loads(done.stdout) if done.stdout.startswith(("{", "[")) else done.stdout, done.stderr

    def init(self, *arguments: str) -> dict[str, str]:
        told, _ = self.say("init", str(self.out), "--json", *arguments)
        return {each["file"]: each["state"] for each in told["files"]}

    @property
    def files(self) -> dict[str, bytes]:
        return {str(each.relative_to(self.out)): each.read_bytes() for each in self.out.rglob("*") if each.is_file()}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_dry_run_writes_nothing_and_says_what_it_would(site: Site) -> None:
    states = site.init("--dry-run")
    assert set(states.values()) == {"created"}
    assert not site.out.exists()
    assert not site.state.exists()


def test_a_second_run_changes_nothing(site: Site) -> None:
    assert set(site.init("--runbook", str(site.book)).values()) == {"created"}
    before = site.files
    assert set(site.init("--runbook", str(site.book)).values()) == {"unchanged"}
    assert site.files == before
    assert len(Accounts(accounts_file(site.state / FILE), SystemClock()).tokens()) == 1


def test_each_runbooks_promise_is_in_the_rules(site: Site) -> None:
    site.init("--runbook", str(site.book))
    rules = yaml.safe_load(site.files["rules/drengine-runbooks.rules.yml"])["groups"][0]["rules"]
    assert [(each["record"], each["expr"], each["labels"]) for each in rules] == [
        ("drengine:rpo_written_seconds", "vector(2)", {"runbook": "web-shop", "source": "db"}),
        ("drengine:rpo_written_seconds", "vector(2)", {"runbook": "web-shop", "source": "web"}),
        ("drengine:rto_written_seconds", "vector(30)", {"runbook": "web-shop"}),
    ]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing: apt prometheus")
@pytest.mark.parametrize(
    "more", [(), ("--url", "https://outpost:7443", "--cacert", "CA", "--alertmanager", "127.0.0.1:9093")]
)
def test_promtool_takes_the_configuration(site: Site, tmp_path: Path, more: tuple[str, ...]) -> None:
    ca = tmp_path / "other-ca.pem"
    ca.write_text("-----BEGIN CERTIFICATE-----\n")
    site.init("--runbook", str(site.book), *(str(ca) if each == "CA" else each for each in more))
    checked = subprocess.run(
        ["promtool", "check", "config", "prometheus.yml"], cwd=site.out, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    if more:
        text = site.files["prometheus.yml"].decode()
        assert f"url: https://outpost:7443{PREFIX}/monitoring/targets" in text
        assert "ca_file: ca.pem" in text
        assert site.files["ca.pem"] == ca.read_bytes()


def test_the_token_counts_as_a_viewers_and_nobody_else_reads_it(site: Site) -> None:
    site.init()
    file = site.out / "drengine.token"
    assert file.stat().st_mode & 0o007 == 0
    person = Accounts(accounts_file(site.state / FILE), SystemClock()).bearer(file.read_text())
    assert (person.name, person.roles) == ("prometheus", {Role.VIEWER})
    file.write_text("drengine_unknown_token")
    assert site.init()["drengine.token"] == "updated"
    assert Accounts(accounts_file(site.state / FILE), SystemClock()).bearer(file.read_text()).name == "prometheus"


def test_what_a_person_changed_stays_and_is_told(site: Site) -> None:
    site.init()
    rules = site.out / "rules/drengine.rules.yml"
    mine = rules.read_text().replace("> 60", "> 90")
    rules.write_text(mine)
    told, _ = site.say("init", str(site.out), "--json")
    assert {each["file"]: each["state"] for each in told["files"]}["rules/drengine.rules.yml"] == "kept"
    assert any("drengine.rules.yml was changed by somebody" in each for each in told["to_do"])
    assert rules.read_text() == mine
    assert "> 60" in rules.with_name(rules.name + ASIDE).read_text()
    assert site.init("--force")["rules/drengine.rules.yml"] == "replaced"
    assert "> 60" in rules.read_text()


def test_what_nobody_changed_is_brought_up_to_date(site: Site) -> None:
    site.init()
    assert site.init("--runbook", str(site.book))["rules/drengine-runbooks.rules.yml"] == "updated"


def test_a_place_that_can_not_be_written_is_an_error_in_words(site: Site) -> None:
    site.out.write_text("a file is in the way")
    _, said = site.say("init", str(site.out), status=207)
    assert "[monitoring-files]" in said


@pytest.mark.parametrize("bad", [b"{", b"[]", b'{"a": 1}'])
def test_a_list_that_can_not_be_read_is_an_error_and_nothing_is_overwritten(tmp_path: Path, bad: bytes) -> None:
    (tmp_path / LIST).write_bytes(bad)
    with pytest.raises(DrengineError):
        write_files(tmp_path, {"a": Wanted("new")}, force=False, dry_run=False)
    assert not (tmp_path / "a").exists()


def test_a_file_that_was_there_before_us_is_somebodys(tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").write_text("theirs")
    wanted = {"prometheus.yml": Wanted("ours")}
    assert write_files(tmp_path, wanted, force=False, dry_run=False) == {"prometheus.yml": State.KEPT}
    assert (tmp_path / "prometheus.yml").read_text() == "theirs"
    assert (tmp_path / f"prometheus.yml{ASIDE}").read_text() == "ours"


# ---- discovery -----------------------------------------------------------------------------------------------------


def test_each_source_has_a_path_at_the_first_target() -> None:
    groups = target_groups(MonitoringOptions(targets=("a:1", "b:2"), others=("c:3",)), ["till", "shop"])
    assert [(each.targets, each.labels) for each in groups] == [
        (["a:1"], {"job": "drengine-target"}),
        (["b:2"], {"job": "drengine-target"}),
        (["c:3"], {"job": "drengine-other"}),
        (["a:1"], {"job": "drengine-agent", "source": "shop", "__metrics_path__": "/metrics/sources/shop"}),
        (["a:1"], {"job": "drengine-agent", "source": "till", "__metrics_path__": "/metrics/sources/till"}),
    ]


def test_targets_that_share_a_store_tell_where_they_are_and_each_shows_its_sources() -> None:
    sharing = [
        SharingTarget("a", ("a.example:7440",), "0.0.0.0:9440", is_living=False),
        SharingTarget("b", ("b.example:7440",), "127.0.0.1:9440", is_living=True),
        SharingTarget("c", ("c.example:7440",), "metrics.example:9440", is_living=True),
        SharingTarget("e", ("e.example:7440",), "", is_living=True),
    ]
    placed = {"at-a": "a", "at-b": "b", "at-c": "c", "at-d": "d"}
    groups = target_groups(MonitoringOptions(targets=("x:1",)), [*placed, "new"], sharing, placed)
    at = {
        job: [each.targets for each in groups if each.labels["job"] == f"drengine-{job}"] for job in ("target", "agent")
    }
    a, b, c = ["a.example:9440"], ["b.example:9440"], ["metrics.example:9440"]
    assert at["target"] == [a, b, c], "one that is gone is asked, so that its silence rings"
    assert at["agent"] == [b, b, c, b, b], "the first that lives shows those whose target is gone"
    assert [each.labels.get("source") for each in groups[3:]] == ["at-a", "at-b", "at-c", "at-d", "new"]


def test_a_site_without_a_target_has_no_sources_to_ask() -> None:
    assert target_groups(MonitoringOptions(targets=()), ["shop"]) == []


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with served(tmp_path) as made:
        yield made


def test_the_orchestrator_tells_what_to_ask_to_whoever_may_look(api: Api) -> None:
    answer = api.ask("GET", "/monitoring/targets")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"  # Prometheus takes no other
    assert {"job": "drengine-target"} in [each["labels"] for each in answer.json]
    assert [each["labels"]["source"] for each in answer.json if "source" in each["labels"]] == ["shop"]
    refused = api.ask("GET", "/monitoring/targets", by=None, headers={"Authorization": "Bearer drengine_no_such"})
    assert refused.status == 401


# ---- a trial of notifications --------------------------------------------------------------------------------------


def test_a_trial_without_a_place_says_so(site: Site) -> None:
    _, said = site.say("notify", status=50)
    assert "names no place" in said


def test_a_trial_that_nobody_takes_ends_with_an_error(site: Site) -> None:
    text = site.file.read_text()
    site.file.write_text(f'{text}[notifications]\nto = ["json://127.0.0.1:1"]\ntries = 1\ntimeout = "1s"\n')
    _, said = site.say("notify", status=208)
    assert "[notice-not-delivered]" in said
