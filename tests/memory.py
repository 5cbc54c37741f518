"""Where servers of tests keep their files: in memory where there is room, since nothing of theirs outlives the test.

A server that is killed loses nothing by it: what it wrote is in the page cache either way.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")
ROOM_BYTES = 4 << 30


def scratch_folder(prefix: str) -> Path:
    """A new folder, which the caller removes."""
    is_roomy = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ROOM_BYTES
    return Path(tempfile.mkdtemp(prefix=prefix, dir=MEMORY if is_roomy else None))
