"""A database on two tracked disks, under load, comes back whole from points of every kind."""

from __future__ import annotations

import random
import secrets

import pytest

from drengine.model.points import PointKind
from tests.agent.capture.ebpf.rig import needs_kernel
from tests.system.live_postgres import ledger_on, live_host, missing, prove

pytestmark = [needs_kernel, pytest.mark.timeout(400)]
POINTS = 2


@pytest.mark.fault(63)
@pytest.mark.parametrize("kind", [PointKind.QUIET, PointKind.FROZEN, PointKind.APPLICATION])
def test_a_live_database_comes_back_whole(kind: PointKind) -> None:
    if why := missing():
        pytest.skip(why)
    seed = secrets.randbelow(2**32)
    print(f"seed {seed}")
    with live_host() as host, ledger_on(host, kind) as ledger:
        proof = prove(host, ledger, kind, POINTS, random.Random(seed))
    assert proof.points == POINTS
    assert proof.transactions >= proof.older > 0
    if kind is not PointKind.QUIET:
        assert proof.freeze_seconds
