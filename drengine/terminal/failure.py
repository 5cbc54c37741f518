"""The traceback of an unexpected failure, kept in a file for whoever mends it."""

from __future__ import annotations

import os
import time
import traceback


def kept_traceback() -> str:
    """Keep the traceback of the exception that is being handled; gives what to report the failure with."""
    if os.environ.get("DRENGINE_DEBUG"):
        traceback.print_exc()
    path = f"{os.environ.get('TMPDIR') or '/tmp'}/drengine-failure-{os.getpid()}-{time.time_ns()}.log"
    try:
        # O_EXCL: nobody has put a link there.
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as report:
            traceback.print_exc(file=report)
    except OSError:
        return "what DRENGINE_DEBUG=1 shows"
    return path
