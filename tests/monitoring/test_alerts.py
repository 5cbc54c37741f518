"""Each alert of the rules begins when it should, and ends when the reason for it does: judged by promtool."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from drengine.monitoring.rules import Promise, promise_rules, rules_text

pytestmark = [
    pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing: apt prometheus"),
    pytest.mark.timeout(300),
]

QUIET, BAD, END = 20, 20, 140
"""Minutes: well, then ill, then well again until the end."""


@dataclass(frozen=True)
class Case:
    """Series by what they are while all is well and while it is not; `{steady}` ones are always so.

    Attributes:
        minutes: one sample each.
    """

    alert: str
    well: str
    ill: str
    series: str
    steady: tuple[tuple[str, str], ...] = ()
    minutes: int = 1
    labels: str = ""

    @property
    def document(self) -> dict[str, Any]:
        """As promtool reads it: silent before, firing at the end of the bad time, and silent in the end."""
        values = f"{self.well}x{QUIET} {self.ill}x{BAD} {self.well}x{END}"
        series = [{"series": self.series, "values": values}]
        series += [{"series": name, "values": f"{value}x{QUIET + BAD + END + 2}"} for name, value in self.steady]
        asked = f'count(ALERTS{{alertname="{self.alert}",alertstate="firing"}})'
        moments = ((QUIET - 1, 0), (QUIET + BAD, 1), (QUIET + BAD + END, 0))
        return {
            "name": self.alert,
            "interval": f"{self.minutes}m",
            "input_series": series,
            "promql_expr_test": [
                {
                    "expr": asked,
                    "eval_time": f"{at * self.minutes}m",
                    "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
                }
                for at, fires in moments
            ],
        }


def gauge(alert: str, series: str, well: str, ill: str, *steady: tuple[str, str], minutes: int = 1) -> Case:
    return Case(alert, well, ill, f"drengine_{series}", tuple((f"drengine_{n}", v) for n, v in steady), minutes)


RUN = 'runbook="shop",mode="failover",run="r1"'
CASES = (
    Case("DrengineOrchestratorGone", "1", "0", 'up{job="drengine-orchestrator",instance="a:1"}'),
    Case("DrengineTargetGone", "1", "0", 'up{job="drengine-target",instance="a:1"}'),
    gauge("DrengineTargetSilent", 'target_peer_living{target="t2",state="serving"}', "1", "0"),
    gauge("DrengineSourceUnowned", "target_unowned_sources", "0", "3"),
    gauge("DrengineDiscoverySilent", "orchestrator_discovery_age_seconds", "5", "900"),
    gauge("DrengineReplicationLagging", 'target_replication_lag_seconds{source="shop"}', "0", "70"),
    gauge("DrengineReplicationBroken", 'target_replication_lag_seconds{source="shop"}', "0", "1000"),
    gauge("DrengineAgentGone", 'target_agent_connected{source="shop"}', "1", "0"),
    gauge("DrengineReplicationStalled", 'target_replication_state{state="STALLED",reason="target-full"}', "0", "1"),
    gauge("DrengineNothingToRecover", 'target_recovery_points{source="shop"}', "1", "0", minutes=5),
    gauge(
        "DrengineRpoMissed",
        'target_replication_lag_seconds{source="shop",volume="data"}',
        "1",
        "6",
        ('orchestrator_source_rpo_objective_seconds{source="shop",runbook="web"}', "5"),
    ),
    gauge("DrengineSourceNeverSeen", 'orchestrator_source_seen{source="shop"}', "1", "0"),
    gauge("DrengineScrubOverdue", 'target_maintenance_success_age_seconds{task="scrub"}', "60", "1300000"),
    gauge(
        "DrengineStoreAlmostFull",
        "target_store_free_bytes",
        "500",
        "150",
        ("target_store_bytes", "500"),
        ("target_store_free_min_bytes", "100"),
    ),
    gauge("DrengineMirrorBehind", 'target_mirror_lag_seconds{source="shop"}', "2", "400"),
    gauge("DrengineStoreUnusable", 'target_store_state{reason="target-full"}', "0", "1"),
    gauge("DrengineUploadsLag", "target_upload_lag_seconds", "2", "400"),
    gauge("DrengineCertificateExpires", 'agent_certificate_expiry_seconds{source="shop",role="target"}', "9e6", "6e5"),
    gauge("DrengineRenewalFails", 'target_renewal_overdue_seconds{folder="/f"}', "0", "60"),
    gauge("DrengineAuthoritySilent", 'orchestrator_authority_silent_seconds{folder="/f"}', "1", "4000"),
    gauge("DrengineCertificateRejected", 'agent_certificate_rejected{source="shop",role="target"}', "0", "1"),
    gauge("DrengineBrokerLost", 'agent_broker_connected{source="shop"}', "1", "0"),
    gauge("DrengineHostGone", 'orchestrator_party_connected{kind="host",name="h1"}', "1", "0"),
    gauge("DrengineStoreDamaged", 'target_damaged_ranges{source="shop"}', "0", "1"),
    gauge("DrengineRescan", 'target_replication_state{state="RESCAN",reason="journal-full"}', "0", "1"),
    gauge(
        "DrengineJournalFilling",
        'agent_journal_used_bytes{source="shop"}',
        "10",
        "90",
        ('agent_journal_capacity_bytes{source="shop"}', "100"),
    ),
    gauge("DrengineDrillTooOld", 'orchestrator_last_drill_age_seconds{runbook="shop"}', "60", "2800000"),
    gauge(
        "DrengineDrillFailed",
        'orchestrator_last_drill_passed{runbook="shop"}',
        "1",
        "0",
        ('orchestrator_runs{runbook="shop",mode="drill"}', "1"),
    ),
    gauge(
        "DrengineNotReady",
        'orchestrator_check_passed{runbook="shop",check="host-connected",about="h1",severity="blocks"}',
        "1",
        "0",
    ),
    gauge("DrengineReadinessUnknown", 'orchestrator_ready_age_seconds{runbook="shop"}', "60", "4000"),
    gauge(
        "DrengineRtoOverObjective",
        'orchestrator_rto_seconds{runbook="shop",mode="drill"}',
        "60",
        "130",
        ('orchestrator_rto_objective_seconds{runbook="shop"}', "120"),
    ),
    gauge(
        "DrengineRpoOverObjective",
        'orchestrator_rpo_seconds{runbook="shop",mode="drill"}',
        "1",
        "9",
        ('orchestrator_rpo_objective_seconds{runbook="shop"}', "5"),
    ),
    gauge("DrengineRunStopped", f'orchestrator_run_waiting_seconds{{{RUN},state="stopped"}}', "_", "0"),
    gauge("DrengineRunWaits", f'orchestrator_run_waiting_seconds{{{RUN},state="waiting"}}', "_", "90"),
    gauge(
        "DrengineRunOverRto",
        f"orchestrator_run_seconds{{{RUN}}}",
        "_",
        "130",
        ('orchestrator_rto_objective_seconds{runbook="shop"}', "120"),
    ),
    gauge("DrengineFencingFailed", 'orchestrator_source_unfenced{runbook="shop",source="shop"}', "0", "1"),
)


def rising(alert: str, series: str) -> dict[str, Any]:
    """A counter that grows by one a minute in the bad time."""
    case = Case(alert, "_", "_", series)
    document = case.document
    document["input_series"] = [
        {"series": series, "values": f"0x{QUIET} 1+1x{BAD - 1} {BAD}x{END}"},
    ]
    return document


def filling() -> dict[str, Any]:
    """60 GB are free, and it gets 100 MB less each minute for six hours; then room is made."""
    document = Case("DrengineStoreFillsSoon", "_", "_", "drengine_nothing", minutes=5).document
    falling = "60000000000x80 60000000000-500000000x80 60000000000x160"
    document["input_series"] = [
        {"series": "drengine_target_store_free_bytes", "values": falling},
        {"series": "drengine_target_store_free_min_bytes", "values": "100x340"},
    ]
    for asked, minutes in zip(document["promql_expr_test"], (390, 790, 1590), strict=True):
        asked["eval_time"] = f"{minutes}m"
    return document


def versions() -> dict[str, Any]:
    """Two versions for more than a day, then one."""
    document = Case("DrengineVersionsDiffer", "_", "_", "drengine_nothing", minutes=60).document
    document["input_series"] = [
        {"series": 'drengine_target_build_info{version="1"}', "values": "1x80"},
        {"series": 'drengine_agent_build_info{source="shop",version="2"}', "values": "_x2 1x40 stale"},
        {"series": 'drengine_agent_build_info{source="shop",version="1"}', "values": "1x2 stale _x39 1x30"},
    ]
    for asked, hours in zip(document["promql_expr_test"], (1, 40, 60), strict=True):
        asked["eval_time"] = f"{hours}h"
    return document


def always() -> dict[str, Any]:
    """The dead man's switch fires with nothing there."""
    asked = 'count(ALERTS{alertname="DrengineWatchdog",alertstate="firing"})'
    expected = [{"labels": "{}", "value": 1}]
    return {
        "name": "DrengineWatchdog",
        "interval": "1m",
        "input_series": [],
        "promql_expr_test": [{"expr": asked, "eval_time": "1m", "exp_samples": expected}],
    }


def expiring(series: str) -> dict[str, Any]:
    """A certificate of 60 days, of which the lifetime is not known, that is renewed when two days are left."""
    document = Case("DrengineCertificateExpires", "_", "_", "drengine_nothing", minutes=60).document
    falling = f"5184000-3600x{58 * 24} 5184000-3600x48"
    document["input_series"] = [{"series": series, "values": falling}]
    for asked, days in zip(document["promql_expr_test"], (50, 57, 59), strict=True):
        asked["eval_time"] = f"{days * 24}h"
    return document


def renewed(series: str) -> dict[str, Any]:
    """One of a day, renewed each 16 hours: never told."""
    document = Case("DrengineCertificateExpires", "_", "_", "drengine_nothing", minutes=60).document
    document["input_series"] = [{"series": series, "values": " ".join(["86400-3600x15"] * 9)}]
    for asked, hours in zip(document["promql_expr_test"], (15, 47, 120), strict=True):
        asked |= {"eval_time": f"{hours}h", "exp_samples": []}
    return document


PARTY_EXPIRY = 'drengine_orchestrator_party_certificate_expiry_seconds{kind="host",name="h1"}'
AUTHORITY_EXPIRY = 'drengine_authority_certificate_expiry_seconds{file="certificate"}'
DOCUMENTS = [
    *(case.document for case in CASES),
    always(),
    rising("DrengineMaintenanceFailing", 'drengine_target_maintenance_failures_total{task="compaction"}'),
    rising("DrengineForcedCutsFail", 'drengine_agent_cuts_failed_total{source="shop",reason="busy"}'),
    rising("DrengineNotificationsFail", 'drengine_orchestrator_notifications_total{outcome="failed"}'),
]


LONG = [
    versions(),
    *(make(series) for make in (expiring, renewed) for series in (PARTY_EXPIRY, AUTHORITY_EXPIRY)),
]
"""Hours and days; judged each hour."""


def judged(folder: Path, rules: dict[str, str], tests: list[dict[str, Any]], *, every: str = "1m") -> None:
    for name, text in rules.items():
        (folder / name).write_text(text)
    document = {"rule_files": list(rules), "evaluation_interval": every, "tests": tests}
    (folder / "test.yml").write_text(yaml.safe_dump(document, sort_keys=False))
    found = subprocess.run(
        ["promtool", "test", "rules", "test.yml"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.fixture(scope="module")
def groups() -> list[dict[str, Any]]:
    """Of the rules."""
    found: list[dict[str, Any]] = yaml.safe_load(rules_text())["groups"]
    return found


def one_alert(groups: list[dict[str, Any]], alert: str) -> dict[str, str]:
    """A file with this alert alone, and with all that is recorded: to evaluate the others beside it takes long."""
    kept = [{**each, "rules": [r for r in each["rules"] if r.get("alert", alert) == alert]} for each in groups]
    return {"drengine.rules.yml": yaml.safe_dump({"groups": [each for each in kept if each["rules"]]})}


def test_every_alert_has_a_case(groups: list[dict[str, Any]]) -> None:
    rules = [rule for group in groups for rule in group["rules"]]
    cases = {document["name"] for document in (*DOCUMENTS, *LONG, filling())}
    assert {rule["alert"] for rule in rules if "alert" in rule} == cases


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document["name"])
def test_each_alert_fires_and_clears(document: dict[str, Any], groups: list[dict[str, Any]], tmp_path: Path) -> None:
    judged(tmp_path, one_alert(groups, document["name"]), [document])


@pytest.mark.parametrize(("document", "every"), [(filling(), "5m"), *((document, "1h") for document in LONG)])
def test_what_takes_hours_or_days_fires_and_clears(
    document: dict[str, Any], every: str, groups: list[dict[str, Any]], tmp_path: Path
) -> None:
    judged(tmp_path, one_alert(groups, document["name"]), [document], every=every)


def test_an_alert_that_never_clears_or_never_fires_would_be_found(tmp_path: Path) -> None:
    """What judges can fail: the same cases against rules with thresholds that are never, and always, crossed."""
    for threshold in ("1e30", "-1"):
        spoiled = rules_text().replace("drengine_target_replication_lag_seconds) > 60", f"x) > {threshold}")
        spoiled = spoiled.replace("(x)", "(drengine_target_replication_lag_seconds)")
        case = [document for document in DOCUMENTS if document["name"] == "DrengineReplicationLagging"]
        with pytest.raises(AssertionError):
            judged(tmp_path, {"drengine.rules.yml": spoiled}, case)


PROMISED = 'drengine_orchestrator_source_rpo_objective_seconds{source="shop",runbook="web"}'


def test_a_runbooks_promise_holds_while_the_orchestrator_is_gone_and_is_told_once(tmp_path: Path) -> None:
    rules = {"a.yml": rules_text(), "b.yml": promise_rules([Promise("web", ("shop",), 5, 120)])}
    expected = 'DrengineRpoMissed{runbook="web",source="shop"}'
    asked = 'count by (alertname, runbook, source) (ALERTS{alertname="DrengineRpoMissed",alertstate="firing"})'
    labels = '{alertname="DrengineRpoMissed", runbook="web", source="shop"}'
    test = {
        "name": expected,
        "interval": "1m",
        "input_series": [
            {"series": 'drengine_target_replication_lag_seconds{source="shop",volume="a"}', "values": "7x100"},
            {"series": PROMISED, "values": "5x20 stale"},
        ],
        "promql_expr_test": [
            {"expr": asked, "eval_time": f"{at}m", "exp_samples": [{"labels": labels, "value": 1}]} for at in (15, 40)
        ],
    }
    judged(tmp_path, rules, [test])


def test_a_runbook_that_was_changed_counts_as_it_is_now(tmp_path: Path) -> None:
    """The file was written for 5 s, and the orchestrator says 60 s: 7 s behind is no alert."""
    rules = {"a.yml": rules_text(), "b.yml": promise_rules([Promise("web", ("shop",), 5, 120)])}
    test = {
        "name": "changed",
        "interval": "1m",
        "input_series": [
            {"series": 'drengine_target_replication_lag_seconds{source="shop",volume="a"}', "values": "7x100"},
            {"series": PROMISED, "values": "60x100"},
        ],
        "promql_expr_test": [
            {"expr": 'ALERTS{alertname="DrengineRpoMissed"}', "eval_time": "40m", "exp_samples": []},
        ],
    }
    judged(tmp_path, rules, [test])
