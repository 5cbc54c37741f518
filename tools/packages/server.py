"""The tree of the server side's package: program, libraries, examples, bill of materials."""

from __future__ import annotations

import compileall
import subprocess
import sys
from pathlib import Path
from py_compile import PycInvalidationMode

from tools.onefile import ROOT
from tools.packages.materials import bill_of_materials

LOCK = ROOT / "requirements/runtime.lock"
EXAMPLES = ("target", "orchestrator")
START = """#!/usr/bin/python{python} -IS
import sys

sys.path.insert(0, "/usr/lib/drengine")
sys.argv[0] = "drengine"
from drengine.cli.main import run

run()
"""


def make_server(place: Path, python: str, machine: str) -> None:
    """Fetch what is locked for that Python and machine, add drengine itself, compile.

    Raises:
        CalledProcessError: something is not to be had, or is another than the locked one.
    """
    library = place / "lib"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile"]
    pip += ["--root-user-action=ignore", "--target", str(library), "--no-deps"]
    wheels = ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    wheels += [f"--platform=manylinux_2_28_{machine}", f"--platform=manylinux_2_17_{machine}"]
    subprocess.run([*pip, *wheels, "--require-hashes", "-r", str(LOCK)], check=True, stdout=2)
    subprocess.run([*pip, "--upgrade", str(ROOT)], check=True, stdout=2)
    _only_the_server(library)
    # The package's files never change where they are installed, so what is compiled needs no look at their times.
    compileall.compile_dir(
        library, quiet=1, stripdir=str(library), prependdir="/usr/lib/drengine",
        invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
    )  # fmt: skip
    (place / "drengine").write_text(START.format(python=python), encoding="utf-8")
    (place / "sbom.json").write_bytes(bill_of_materials(LOCK))
    examples = place / "examples"
    examples.mkdir()
    for name in EXAMPLES:
        words = [sys.executable, "-m", "drengine.cli.main", name, "example-config"]
        text = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        (examples / f"{name}.toml").write_text(text, encoding="utf-8")


def _only_the_server(library: Path) -> None:
    """No scripts of libraries, no pages and units at a wheel's places, and nothing of the agent's: it has a package."""
    unwanted = [str(library / name) for name in ("bin", "share", "drengine_agent")]
    subprocess.run(["rm", "-rf", *unwanted], check=True)
