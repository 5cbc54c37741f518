"""The traceback of an unexpected failure, kept in a file for whoever mends it."""

from __future__ import annotations

import os
import tempfile
import traceback


def kept_traceback() -> str:
    """Keep the traceback of the exception that is being handled; gives what to report the failure with."""
    if os.environ.get("DRENGINE_DEBUG"):
        traceback.print_exc()
    try:
        with tempfile.NamedTemporaryFile("w", prefix="drengine-failure-", suffix=".log", delete=False) as report:
            traceback.print_exc(file=report)
    except OSError:
        return "what DRENGINE_DEBUG=1 shows"
    return report.name
