"""What is typed about new homes: `--onto` and `--disk`."""

from __future__ import annotations

import re

import pytest

from drengine.failover.moving import read_onto
from drengine.failover.options import NewHome
from drengine.failover.runbook.values import Mode
from drengine.model.errors import DrengineError
from tests.failover.engine.world import runbook

ONE, TWO = runbook("shop"), runbook("db", "web")


def test_a_bare_host_is_for_the_only_source() -> None:
    found = read_onto(Mode.FAILBACK, ONE, ["shop2"], ["data=/dev/sdb"])
    assert found == {"shop": NewHome(host="shop2", disks={"data": "/dev/sdb"})}
    assert read_onto(Mode.REPROTECT, TWO, ["web=w2"], ["data=x"]) == {"web": NewHome(host="w2", disks={"data": "x"})}
    both = read_onto(Mode.FAILBACK, TWO, ["web=w2", "db=d2"], ["web/data=x"])
    assert both == {"web": NewHome(host="w2", disks={"data": "x"}), "db": NewHome(host="d2")}
    assert read_onto(Mode.DRILL, TWO, [], []) == {}


@pytest.mark.parametrize(
    ("mode", "onto", "disks", "told"),
    [
        (Mode.FAILBACK, ["x2"], [], "which of db, web goes there"),
        (Mode.FAILBACK, ["shop=x2"], [], "no such source, but db, web"),
        (Mode.FAILBACK, ["db=x2", "db=x3"], [], "has it twice"),
        (Mode.FAILBACK, ["db=x2", "web=x2"], [], "home of one source only"),
        (Mode.FAILBACK, ["db=A B"], [], "host"),
        (Mode.FAILBACK, ["db=x2", "web=x3"], ["data=y"], "SOURCE/VOLUME=DISK"),
        (Mode.FAILBACK, ["db=x2"], ["data=y", "data=z"], "said once"),
        (Mode.FAILBACK, [], ["data=y"], "no host"),
        (Mode.FAILOVER, ["db=x2"], [], "a failover goes to no new host"),
    ],
)
def test_nonsense_is_refused(mode: Mode, onto: list[str], disks: list[str], told: str) -> None:
    with pytest.raises(DrengineError, match=re.escape(told)):
        read_onto(mode, TWO, onto, disks)
