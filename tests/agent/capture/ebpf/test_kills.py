"""A short round of the campaign that kills an agent under load; see tests/soak/live.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.agent.capture.ebpf.rig import needs_kernel
from tests.soak.live import LiveSoak

pytestmark = needs_kernel


@pytest.mark.fault(20)
def test_killed_under_load_the_agent_goes_on_without_a_rescan_and_lost_tracking_is_one(tmp_path: Path) -> None:
    soak = LiveSoak(tmp_path, seed=11)
    try:
        soak.begin()
        for lose in (False, False, True, False):
            soak.kill(lose=lose)
        assert soak.checked == 4
    finally:
        soak.close()
