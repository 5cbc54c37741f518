"""Who may approve."""

from __future__ import annotations

import pytest

from drengine.failover.steps.approval import Approval


@pytest.mark.parametrize(
    ("person", "started_by", "wanted"),
    [("ann", "bob", True), ("ann", "ann", False), ("Ann", "ann", False), ("ANN", "Ann", False), ("", "bob", False)],
)
def test_nobody_approves_what_he_began_under_whichever_spelling(person: str, started_by: str, wanted: bool) -> None:
    """Names of a provider may have capitals, where those of accounts and users have none."""
    assert Approval(prompt="Go?").allows(person, ["approver"], started_by) is wanted
    assert Approval(prompt="Go?", self_approval=True).allows(person, ["approver"], started_by) is bool(person)
