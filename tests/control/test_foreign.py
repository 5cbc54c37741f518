"""What a party says is bounded where it is read: numbers, depth, count, length."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drengine.config import Address
from drengine.control.agents import BrokerAgents
from drengine.control.config import BrokerOptions
from drengine.control.foreign import DEPTH_MAX, LOG_SECONDS, VALUES_MAX, Dropped, Unreadable, decode
from drengine.control.message import PAYLOAD_BYTES_MAX, Message
from drengine.control.messages import AgentReport, Answer, Command
from drengine.failover.registry import Registry
from drengine.failover.registry.tables import parties
from tests.clock import ManualClock

REPORT: dict[str, Any] = {
    "name": "shop", "kind": "agent", "state": "CONTINUOUS", "reason": "none", "generation": 1, "fenced": False,
    "serving": True, "lag_seconds": 0.0, "backlog_bytes": 0, "at_ns": 1, "sequence": 2, "instance": "i",
}  # fmt: skip


def said(**changes: Any) -> bytes:
    return json.dumps({**REPORT, **changes}).encode()


def deep(levels: int, **changes: Any) -> bytes:
    return said(**changes)[:-1] + b', "details": {"a": ' + b"[" * levels + b"]" * levels + b"}}"


OUT_OF_BOUNDS = {
    "sequence": (said(sequence=2**63), Dropped.NUMBER),
    "far sequence": (said(sequence=2**64 - 1), Dropped.NUMBER),
    "negative": (said(at_ns=-(2**63) - 1), Dropped.NUMBER),
    "huge detail": (said(details={"a": [10**40]}), Dropped.NUMBER),
    "float for integer": (said(sequence=1e30), Dropped.MALFORMED),
    "infinite": (said()[:-1] + b', "details": {"a": 1e999}}', Dropped.MALFORMED),
    "900 deep": (deep(900), Dropped.TOO_DEEP),
    "deeper than Python": (deep(20_000), Dropped.TOO_DEEP),
    "a little too deep": (deep(DEPTH_MAX), Dropped.TOO_DEEP),
    "many": (said(volumes=[{}] * VALUES_MAX), Dropped.TOO_MANY_VALUES),
    "long": (said(state="x" * PAYLOAD_BYTES_MAX), Dropped.TOO_LONG),
    "NUL": (said(instance="a\0"), Dropped.MALFORMED),
    "no JSON": (b"\xff", Dropped.MALFORMED),
    "surrogate": (said(state="STATE").replace(b"STATE", b"\\ud800"), Dropped.MALFORMED),
}


@pytest.mark.parametrize("case", OUT_OF_BOUNDS)
def test_what_is_out_of_bounds_is_refused_with_its_reason(case: str) -> None:
    payload, reason = OUT_OF_BOUNDS[case]
    with pytest.raises(Unreadable) as raised:
        decode(payload, AgentReport)
    assert raised.value.reason is reason


def test_what_is_just_within_bounds_is_taken() -> None:
    assert decode(said(sequence=2**63 - 1, at_ns=-(2**63)), AgentReport).sequence == 2**63 - 1
    assert decode(deep(DEPTH_MAX - 2), AgentReport).name == "shop"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    details=st.dictionaries(st.text(), _JSON),
    number=st.integers(),
    kind=st.sampled_from([AgentReport, Answer, Command]),
)
def test_nothing_else_is_ever_raised_and_what_is_taken_can_be_kept(
    details: dict[str, Any], number: int, kind: type[Any]
) -> None:
    names = {AgentReport: {}, Answer: {"done": True, "ok": True}, Command: {"verb": "cut", "expires_ns": number}}
    body = {**REPORT, "sequence": number, "id": "x", "details": details, "result": details, "arguments": details}
    try:
        taken = decode(json.dumps({**body, **names[kind]}).encode(), kind)
    except Unreadable:
        return
    for value in (getattr(taken, "sequence", 0), getattr(taken, "expires_ns", 0)):
        assert -(2**63) <= value < 2**63


async def test_a_party_keeps_its_last_good_report_and_a_flood_is_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = ManualClock(10**18)
    agents = BrokerAgents(BrokerOptions(address=Address("127.0.0.1", 1)), clock=clock, random=Random(1))
    topic = "drengine/main/agent/shop/report"
    agents._receive(Message(topic, said(sequence=5), retained=True))
    for _ in range(500):
        agents._receive(Message(topic, deep(900, sequence=7), retained=True))
        agents._receive(Message(topic, said(sequence=2**63), retained=True))
    assert agents.reports()["shop"].sequence == 5
    assert agents.dropped == {Dropped.TOO_DEEP: 500, Dropped.NUMBER: 500}
    assert len(caplog.records) == 2
    clock.advance(LOG_SECONDS)
    agents._receive(Message(topic, deep(900), retained=True))
    assert len(caplog.records) == 3


async def test_somebody_elses_proof_of_contact_is_none() -> None:
    agents = BrokerAgents(BrokerOptions(address=Address("127.0.0.1", 1)), clock=ManualClock(10**18), random=Random(1))
    for payload in (b"never", b"", b"NaN", b"1e400"):
        agents._receive(Message(str(agents._own), payload))
    assert agents.dropped == {Dropped.MALFORMED: 4}
    agents._receive(Message(str(agents._own), b"1e300"))
    assert agents._proved_at == agents._clock.monotonic(), "a moment that has not come proves nothing"


def test_a_report_that_an_older_version_kept_hides_nobody(tmp_path: Path) -> None:
    registry = Registry.open(str(tmp_path / "registry"), clock=ManualClock(10**18))
    registry.note_report(decode(said(), AgentReport))
    with registry._database.writing() as connection:
        connection.execute(parties.update().values(report=deep(900).decode()))
    assert [(each.name, each.report) for each in registry.parties()] == [("shop", None)]
