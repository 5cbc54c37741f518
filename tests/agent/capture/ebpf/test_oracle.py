"""A short round of the oracle; `make oracle` runs a long one."""

from __future__ import annotations

import random
import shutil

import pytest

from tests.agent.capture.ebpf.operations import OPERATIONS
from tests.agent.capture.ebpf.oracle import MAKE, RATIO_MAX, SCENES, campaign
from tests.agent.capture.ebpf.rig import needs_kernel

pytestmark = needs_kernel


@pytest.mark.fault(20)
@pytest.mark.fault(24)
@pytest.mark.parametrize("kind", ["raw", "ext4", "xfs", "btrfs"])
def test_whatever_is_done_to_a_disk_the_tracked_blocks_hold_all_that_changed(kind: str) -> None:
    needed = ["fio", *(["mount", MAKE[kind][0]] if kind in MAKE else [])]
    if missing := [tool for tool in needed if shutil.which(tool) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    scenes = [scene for scene in SCENES if scene.kind == kind]
    tally = campaign(36, seed, scenes=(random.Random(seed).choice(scenes),))
    assert tally.comparisons >= 6
    assert 1000 < tally.changed_blocks <= tally.tracked_blocks
    assert tally.restarts <= tally.operations
    assert tally.worst_ratio <= RATIO_MAX
    assert len(OPERATIONS) > 10
