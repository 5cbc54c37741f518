"""What is approved is what is carried out: an approval of anything else does not count."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from drengine.failover.approvals import FORCE_STEP
from drengine.failover.engine import Engine
from drengine.failover.orders import Orders
from drengine.failover.plan import plan
from drengine.failover.reading.reader import read_runbook
from drengine.failover.run import Outcome, RunState
from drengine.failover.runbook.values import Mode
from tests.failover.engine.test_engine import BOOK, begin, engine, world, write_book
from tests.persons import ANN, BOB

__all__ = ["engine", "world"]


async def test_a_runbook_that_was_changed_in_the_registry_after_its_approval_waits_again(
    engine: Engine, tmp_path: Path
) -> None:
    run = await engine.execute(begin(engine, Mode.FAILOVER, write_book(tmp_path, ask=True)), wait=False)
    Orders(engine, ANN).approve(run.id)
    with sqlite3.connect(tmp_path / "registry.sqlite") as registry:
        registry.execute("UPDATE runbooks SET text = replace(text, 'command: [echo', 'command: [touch')")
    changed = await engine.execute(run, wait=False)
    assert changed.state is RunState.WAITING, "the approval was of another text"
    with sqlite3.connect(tmp_path / "registry.sqlite") as registry:
        registry.execute("UPDATE runbooks SET text = replace(text, 'command: [touch', 'command: [echo')")
    assert (await engine.execute(run)).outcome is Outcome.COMPLETED
    heeded = engine.snapshot(run.id).state("all.before.1").data
    assert (heeded["by"], heeded["proof"], len(heeded["digest"])) == ("ann", "login:ann", 64)


def test_what_is_forced_waits_first_where_the_runbook_says_so() -> None:
    book = read_runbook(BOOK.replace("name: shop", "name: shop\nforce_by: ['role:approver']"), where="test")
    for mode, option in ((Mode.FAILOVER, "force"), (Mode.FAILBACK, "discard_divergent")):
        forced = plan(mode, book, {option: True, "force_by": book.force_by})
        (step,) = (each for each in forced if each.id == FORCE_STEP)
        assert step.needs == ("preflight",)
        later = [each for each in forced if each.id not in ("declare", "preflight", FORCE_STEP)]
        assert all(not {"declare", "preflight"} & {*each.needs} for each in later), "all else waits for the approval"
        assert FORCE_STEP not in {each.id for each in plan(mode, book, {"force_by": book.force_by})}
    assert not step.settings.allows("bob", [str(each) for each in BOB.roles], "bob")
