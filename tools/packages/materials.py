"""What a package is made of, for those who must account for it: CycloneDX 1.5, from a lock file."""

from __future__ import annotations

import json
import re
from pathlib import Path

from drengine import __version__
from tools.onefile import requirements

PINNED = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;]+)")


def bill_of_materials(lock: Path) -> bytes:
    """The same lock gives the same bytes: no serial number, no time."""
    components = [
        {
            "type": "library",
            "name": found["name"],
            "version": found["version"],
            "purl": f"pkg:pypi/{found['name'].lower()}@{found['version']}",
            "hashes": [{"alg": "SHA-256", "content": each} for each in re.findall(r"sha256:([0-9a-f]{64})", line)],
        }
        for line in requirements(lock).values()
        if (found := PINNED.match(line))
    ]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "drengine", "version": __version__}},
        "components": components,
    }
    return json.dumps(document, indent=1).encode() + b"\n"
