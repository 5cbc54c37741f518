"""Hosts as the doctor's facts describe them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from drengine_agent.doctor.facts import DeviceKind, Host, Outcome, Place, SelfTest, Volume
from drengine_agent.doctor.judge import BIO_TRIAL, TRIALS

PASSED = SelfTest(Outcome.PASSED, "a write to a loop device was seen", (DeviceKind.REQUEST,))
NOT_RUN = SelfTest.skipped("not root")

DISK = Volume("data", Path("/dev/vdb"), kind=DeviceKind.REQUEST, device="vdb", size_bytes=1 << 40)
GOOD = Host(
    python=(3, 11, 2),
    modules_missing=(),
    machine="x86_64",
    kernel="6.1.0-18-amd64",
    user_id=0,
    capabilities_missing=(),
    lockdown="none",
    container="",
    trials=dict.fromkeys([*TRIALS, BIO_TRIAL], ""),
    systemd="running",
    self_test=PASSED,
    volumes=(DISK,),
    places=(Place("state directory", Path("/var/lib/drengine-agent"), free_bytes=1 << 33),),
)


def host(**changes: Any) -> Host:
    return dataclasses.replace(GOOD, **changes)


def untried(**changes: Any) -> Host:
    """A host on which nothing was tried."""
    return host(self_test=NOT_RUN, trials={}, **changes)


def failing(*trials: str, why: str = "Operation not permitted", **changes: Any) -> Host:
    """A host whose kernel refuses these trials, and the self-test with them."""
    test = SelfTest(Outcome.FAILED, f"could not be tried: {why}")
    return host(self_test=test, trials={**GOOD.trials, **dict.fromkeys(trials, why)}, **changes)
