"""What keeps the LUNs of an instance served: it starts again whatever has died of the processes that serve them.

    python -m drengine.failover.drivers.keeper PLAN DESCRIPTOR

runs in the instance's directory as long as they are to be served; PLAN is a LunPlan, and the descriptor a pipe with the
secrets. It keeps nothing that could be lost: killed, it is started again by the next launch.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from drengine.failover.drivers.luns import LunPlan, ServedLuns
from drengine.iscsi.serving import Account
from drengine.model.errors import DrengineError

log = logging.getLogger("drengine.keeper")

LOOK_SECONDS = 30.0
"""Ends of processes are heard at once; this is for what nobody thought of."""
RETRY_SECONDS = 2.0


def wait_for_end(processes: Iterable[int], seconds: float) -> None:
    """Return when the first of these processes has ended, or time is up."""
    with contextlib.ExitStack() as open_:
        ended = select.poll()
        for process in processes:
            try:
                descriptor = os.pidfd_open(process)
            except ProcessLookupError:
                return
            open_.callback(os.close, descriptor)
            ended.register(descriptor, select.POLLIN)
        ended.poll(seconds * 1e3)


def keep(luns: ServedLuns, account: Account | None, mutual: Account | None) -> None:
    """Until it is killed."""
    while True:
        processes = luns.processes()  # first: what ends after the look is among them
        if luns.served() is not None:
            wait_for_end(processes, LOOK_SECONDS)
            continue
        try:
            served = luns.serve(account, mutual)
            log.warning("%s is served again at %s", served.target, served.portal)
        except (DrengineError, OSError) as error:
            log.warning("%s", error)
            time.sleep(RETRY_SECONDS)


def main(plan: str, descriptor: str) -> None:
    """See the module."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with os.fdopen(int(descriptor), "rb") as given:
        account, mutual = msgspec.json.decode(given.read(), type=tuple[Account | None, Account | None])
    keep(ServedLuns(msgspec.json.decode(Path(plan).read_bytes(), type=LunPlan)), account, mutual)


if __name__ == "__main__":
    main(*sys.argv[1:])
