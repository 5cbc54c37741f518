"""A recovered PostgreSQL loses nothing that it acknowledged when the target under it is killed."""

from __future__ import annotations

import secrets

import pytest

from tests.soak.postgres import postgres_soak
from tests.system.disks import skip_unless_disks_can_be_attached
from tests.system.postgres import skip_unless_installed

KILLS = 2


@pytest.mark.fault(30)
@pytest.mark.timeout(300)
def test_every_acknowledged_commit_is_there_after_the_target_was_killed() -> None:
    skip_unless_disks_can_be_attached()
    skip_unless_installed()
    seed = secrets.randbelow(2**31)
    print(f"seed {seed}")
    with postgres_soak(seed, []) as soak:
        for _ in range(KILLS):
            soak.kill()
    assert soak.kills == KILLS
    assert soak.found > 0
