"""The container image, built from the package on a Debian made here: nothing of a registry is fetched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packages.test_packages import PACKAGES, package

ROOT = Path(__file__).parents[2]
TOOLS = ("buildah", "mmdebstrap")
missing = [name for name in TOOLS if shutil.which(name) is None]
pytestmark = [
    pytest.mark.machine,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: chroot, mounts"),
    pytest.mark.skipif(not PACKAGES.is_dir(), reason="`make packaged` builds the packages first"),
    pytest.mark.skipif(bool(missing), reason=f"missing: {', '.join(missing)}"),
    pytest.mark.timeout(900),
]
MACHINE_APT = 'cp /etc/apt/apt.conf.d/99* "$1/etc/apt/apt.conf.d/" 2>/dev/null || :'


class Buildah:
    """With a storage of its own."""

    def __init__(self, place: Path) -> None:
        self._words = [
            "buildah",
            "--storage-driver",
            "vfs",
            "--root",
            str(place / "root"),
            "--runroot",
            str(place / "run"),
        ]

    def __call__(self, *words: str | Path) -> str:
        done = subprocess.run([*self._words, *map(str, words)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()


@pytest.fixture
def buildah(tmp_path: Path) -> Iterator[Buildah]:
    made = Buildah(tmp_path / "storage")
    yield made
    made("rm", "--all")


def test_the_image_is_built_from_the_package_and_makes_a_store(buildah: Buildah, tmp_path: Path) -> None:
    debian = tmp_path / "debian.tar"
    base = ["mmdebstrap", "--quiet", "--variant=minbase", f"--customize-hook={MACHINE_APT}", "bookworm", str(debian)]
    subprocess.run(base, check=True, capture_output=True)
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, debian, "/")
    buildah("commit", "--quiet", container, "localhost/debian:12")
    context = tmp_path / "dist"
    context.mkdir()
    shutil.copy(package(PACKAGES, "drengine_*_amd64.deb"), context)
    options = ["--isolation", "chroot", "--build-arg", "BASE=localhost/debian:12"]
    buildah("build", "--quiet", *options, "-f", ROOT / "deploy/Containerfile", "-t", "localhost/drengine", context)

    told = json.loads(buildah("inspect", "localhost/drengine"))["OCIv1"]["config"]
    assert told["User"] == "drengine" and told["Entrypoint"] == ["/usr/bin/drengine"]
    assert set(told["Volumes"]) == {"/etc/drengine", "/var/lib/drengine"}
    container = buildah("from", "localhost/drengine")
    inside = ["run", "--isolation", "chroot", container, "--"]
    assert buildah(*inside, "id", "-un") == "drengine"
    said = buildah(*inside, "/usr/bin/drengine", "target", "init", "--store", "/var/lib/drengine/store")
    assert said.startswith("made a store in /var/lib/drengine/store")
    assert json.loads(buildah(*inside, "drengine", "status", "--store", "/var/lib/drengine/store", "--json"))
    assert buildah(*inside, "sh", "-c", "test -r /usr/share/doc/drengine/sbom.json && echo there") == "there"
