"""Build the packages: one description each (deploy/packages/*.yaml), as .deb and as .rpm, in dist/.

The agent's holds the one-file agent and fits every machine. The server side's holds the program with its libraries
for one version of Python and one machine: wheels from requirements/runtime.lock, each checked by its hash.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from drengine import __version__
from tools.onefile import LOCK as AGENT_LOCK
from tools.onefile import ROOT, build
from tools.packages.materials import bill_of_materials
from tools.packages.server import make_server
from tools.packages.shells import COMPLETIONS, man_page

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
DESCRIPTIONS = ROOT / "deploy/packages"
SOURCE_DATE_EPOCH = "315532800"  # 1980: the same sources give the same bytes


def main() -> None:
    """Build them all, or those of `--only`."""
    parser = argparse.ArgumentParser(prog="python -m tools.packages", description="Build .deb and .rpm packages.")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "dist")
    parser.add_argument("--only", choices=("agent", "server"))
    parser.add_argument("--machine", choices=MACHINES, default="amd64", help="for the server side")
    parser.add_argument("--python", default="3.11", help="the target system's own, for the server side")
    parser.add_argument("--agent", type=Path, help="a one-file agent that is there already")
    parser.add_argument("--version", default=__version__)
    said = parser.parse_args()
    said.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _shells(work / "shells")
        _agent(work / "agent", said.agent)  # of both packages: the server side hands it out
        makers: dict[str, Callable[[], None]] = {
            "agent": lambda: None,
            "server": lambda: make_server(work / "server", said.python, MACHINES[said.machine]),
        }
        for name, make in makers.items():
            if said.only in (None, name):
                make()
                values = {"ARCH": said.machine, "VERSION": said.version, "PYTHON": said.python, "ROOT": str(ROOT)}
                for packager in ("deb", "rpm"):
                    _pack(name, packager, work, said.output, values)


def _agent(place: Path, built: Path | None) -> None:
    place.mkdir()
    if built:
        shutil.copy(built, place / "drengine-agent")
    else:
        build(place / "drengine-agent")
    (place / "sbom.json").write_bytes(bill_of_materials(AGENT_LOCK))


def _shells(place: Path) -> None:
    place.mkdir()
    for program in ("drengine", "drengine-agent"):
        for shell, script in COMPLETIONS.items():
            (place / f"{program}.{shell}").write_text(script(program), encoding="utf-8")
        (place / f"{program}.1.gz").write_bytes(gzip.compress(man_page(program).encode(), mtime=0))


def _pack(name: str, packager: str, work: Path, output: Path, values: dict[str, str]) -> None:
    """nfpm fills in neither paths nor names of files from the environment everywhere, so they are filled in here."""
    text = (DESCRIPTIONS / f"{name}.yaml").read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"${{{key}}}", value)
    description = work / f"{name}.yaml"
    description.write_text(text, encoding="utf-8")
    nfpm = shutil.which("nfpm", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}") or "nfpm"
    subprocess.run(
        [nfpm, "package", "--config", str(description), "--packager", packager, "--target", str(output)],
        check=True,
        cwd=work,
        env={**os.environ, "SOURCE_DATE_EPOCH": SOURCE_DATE_EPOCH},
    )


if __name__ == "__main__":
    main()
