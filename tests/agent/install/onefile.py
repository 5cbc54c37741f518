"""A one-file agent for the Python that runs the tests, packed from what is installed here: nothing is fetched."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from tools.onefile import DROPPED, NATIVE, own_sources, pack, requirements, without_sections


def build_here(path: Path, *, extra: Mapping[str, bytes] | None = None) -> Path:
    """Write the file."""
    found = dict(own_sources())
    for name in _closure({*NATIVE, *requirements()}):
        for file in distribution(name).files or ():
            source = Path(str(file.locate()))
            if ".." in file.parts or "__pycache__" in file.parts or not source.is_file() or DROPPED.search(str(file)):
                continue
            data = source.read_bytes()
            suffix = re.search(r"\.(cpython-[\w-]+)\.so$", file.name)
            if file.name.endswith(".abi3.so"):
                found[f"stable/{EXTENSION_SUFFIXES[0].split('-', 2)[2].removesuffix('.so')}/{file}"] = without_sections(
                    data
                )
            elif suffix:
                found[f"native/{suffix[1]}/{file}"] = without_sections(data)
            elif file.suffix == ".py":
                found[f"common/{file}"] = data
    path.write_bytes(pack({**found, **(extra or {})}, level=1))
    path.chmod(0o755)
    return path


def _closure(names: set[str]) -> set[str]:
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        try:
            needed = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # for other systems
        seen.add(name)
        waiting += [re.match(r"[\w.-]+", each)[0] for each in needed if ";" not in each]  # type: ignore[index]
    return seen
