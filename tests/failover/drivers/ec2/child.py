"""A driver in a process of its own, which can be killed: `python -m tests.failover.drivers.ec2.child JOB`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.failover.drivers.ec2.site import Time, connect, request


def main(job: str) -> int:
    """A job names the call of the driver, the instance, and the settings, as JSON."""
    from drengine.failover.drivers.ec2.driver import Ec2Driver

    wanted = json.loads(job)
    asked = request(
        Path(wanted["directory"]), wanted["settings"], isolated=wanted["isolated"], instance=wanted["instance"]
    )
    driver = Ec2Driver(Time().pace(), connect)
    match wanted["call"]:
        case "launch":
            driver.launch(asked, lambda _: None)
        case "quiesce":
            driver.quiesce(asked)
        case _:
            driver.stop(asked)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
