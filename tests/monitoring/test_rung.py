"""Each alert rings and ends for real in a trial (`make field ARGS="--only alerts"`), or it is said why it can't."""

from __future__ import annotations

import re

import pytest
import yaml

from drengine.config import parse
from drengine.failover.config import READY_EVERY_SECONDS_MAX, OrchestratorConfig
from drengine.model.errors import DrengineError
from drengine.monitoring.rules import rules_text
from tests.field.trials import alerts_of_certificates, alerts_of_runs, alerts_of_sources, alerts_of_stores, monitoring
from tests.monitoring.haste import FACTORS, hastened, hastened_expression

TRIALS = (monitoring, alerts_of_certificates, alerts_of_runs, alerts_of_sources, alerts_of_stores)
NEVER_ENDS = {
    "DrengineWatchdog": "It always rings; it ends with Prometheus itself, and nobody is left to ask then.",
    "DrengineUploadsLag": "The trials keep their data on disks; in tests/s3/test_lag.py the figure rises and falls.",
    "DrengineTargetSilent": "The trials have one target; in tests/target/test_ownership.py the figure falls.",
    "DrengineSourceUnowned": "As DrengineTargetSilent; there it rises.",
}
"""Alerts that no trial brings about and ends, with the reason."""


def alerts() -> dict[str, str]:
    """The expression of each."""
    rules = [rule for group in yaml.safe_load(rules_text())["groups"] for rule in group["rules"]]
    return {rule["alert"]: rule["expr"] for rule in rules if "alert" in rule}


def test_every_alert_rings_for_real_once_or_it_is_said_why_not() -> None:
    rung = [alert for module in TRIALS for alert in module.RINGS]
    assert sorted([*rung, *NEVER_ENDS]) == sorted(alerts())


def test_an_orchestrator_that_looks_as_seldom_as_may_be_rings_no_alert() -> None:
    found = re.search(r"ready_age_seconds > (\d+)", alerts()["DrengineReadinessUnknown"])
    assert found
    assert int(found[1]) >= 2 * READY_EVERY_SECONDS_MAX
    assert parse(OrchestratorConfig, {"store": "/s", "ready_every": "30m"}).ready_every == READY_EVERY_SECONDS_MAX
    with pytest.raises(DrengineError, match="30m"):
        parse(OrchestratorConfig, {"store": "/s", "ready_every": "31m"})


def test_a_hastened_rule_differs_in_its_times_alone() -> None:
    for alert, expression in alerts().items():
        fast = hastened_expression(expression, FACTORS.get(alert, 1))
        assert (fast != expression) is (alert in FACTORS), alert
        assert re.sub(r"[\d.]+( \* 86400)?[smhd]?\b", "N", fast) == re.sub(
            r"[\d.]+( \* 86400)?[smhd]?\b", "N", expression
        ), alert
    assert set(FACTORS) <= set(alerts())
    waits = [rule.get("for") for group in yaml.safe_load(hastened(rules_text()))["groups"] for rule in group["rules"]]
    assert set(waits) == {"1s", None}


@pytest.mark.parametrize(
    ("expression", "fast"),
    [
        ("x_age_seconds > 600", "x_age_seconds > 10"),
        ("max by (source) (x_seconds) > 900", "max by (source) (x_seconds) > 15"),
        ('x_seconds{state="waiting"} > 60', 'x_seconds{state="waiting"} > 1'),
        ('{__name__=~"x_silent_seconds"} > 3600', '{__name__=~"x_silent_seconds"} > 60'),
        ("increase(x_total[1h]) > 2", "increase(x_total[60s]) > 2"),
        ("predict_linear(x_bytes[6h], 3 * 86400) < y", "predict_linear(x_bytes[360s], 4320) < y"),
        ("count_over_time(x_bytes[6h]) > 60", "count_over_time(x_bytes[360s]) > 60"),
    ],
)
def test_times_are_divided_and_nothing_else_is(expression: str, fast: str) -> None:
    assert hastened_expression(expression, 60) == fast
