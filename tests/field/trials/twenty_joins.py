"""Many servers join a site."""

from __future__ import annotations

import time

from tests.agent.install.joining import site, states
from tests.agent.install.onefile import build_here
from tests.field.ground import Ground
from tests.field.trial import trial

SERVERS = 20
LIMIT_SECONDS = 300.0


@trial(seconds_max=900)
def twenty_servers_join_from_one_inventory(ground: Ground) -> None:
    """Twenty servers join by the lines of one inventory: points within five minutes; a second run changes nothing."""
    ground.needs_kernel()
    ground.needs("unshare", "nsenter", "mkfs.ext4", "losetup", "ip", "ss")
    count = max(2, round(SERVERS * ground.scale))
    with site(ground.folder, build_here(ground.folder / "drengine-agent"), count) as made:
        began = time.monotonic()
        made.write_lines()
        took = made.join()
        found = states(made.servers)
        seconds = time.monotonic() - began
        assert set(found.values()) == {"CONTINUOUS"}, found
        points = made.points()
        assert len(points) == count and all(points.values()), points
        ground.measured.update(
            {"servers": count, "all_continuous_seconds": round(seconds, 1), "slowest_line_seconds": round(max(took), 1)}
        )
        assert seconds <= LIMIT_SECONDS * max(1.0, ground.scale), f"it took {seconds:.0f} s"

        files, processes = [each.files() for each in made.servers], [each.process() for each in made.servers]
        again = made.write_lines()
        assert not any(each["token_made"] for each in again)
        ground.measured["second_run_slowest_line_seconds"] = round(max(made.join()), 1)
        assert [each.files() for each in made.servers] == files
        assert [each.process() for each in made.servers] == processes
