"""Packages on hosts of their own: installed, upgraded, removed and purged, with the machine's own dpkg and systemd.

`make packaged` builds them first. Nothing is fetched from a network: what a package needs must be on a stock Debian 12.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from drengine.config import Address
from drengine.control.broker import embedded_broker
from tests.agent.install.host import Host, host
from tests.agent.install.live import Target, facts, journal, mounted, newest_has, pins, wait_for, write
from tests.agent.install.onefile import build_here
from tests.control.site import free_port
from tests.hints.words import every_hint

ROOT = Path(__file__).parents[2]
PACKAGES = Path(os.environ.get("DRENGINE_PACKAGES", "/nonexistent"))
pytestmark = [
    pytest.mark.machine,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces, dpkg"),
    pytest.mark.skipif(not PACKAGES.is_dir(), reason="`make packaged` builds the packages first"),
    pytest.mark.timeout(600),
]
SERVICE = "drengine-target.service"
UNITS = [f"drengine-{name}.service" for name in ("target", "orchestrator", "authority", "broker", "mirror")]


def package(place: Path, name: str) -> Path:
    """The one that is there."""
    (found,) = place.glob(name)
    return found


def newer(name: str, tmp_path: Path, *options: str) -> Path:
    """The same package under a later version."""
    words = [sys.executable, "-m", "tools.packages", "-o", tmp_path / "newer", "--only", name, "--version", "0.2.0"]
    subprocess.run([*words, *options], check=True, cwd=ROOT, capture_output=True)
    return tmp_path / "newer"


def dpkg(there: Host, action: str, *words: str | Path) -> str:
    done = there.run("dpkg", f"--{action}", *words, seconds=200)
    return done.stdout + done.stderr


def bring(there: Host, file: Path) -> Path:
    shutil.copy(file, there.root / "root" / file.name)
    return Path("/root") / file.name


def is_active(there: Host, service: str) -> str:
    return there.run("systemctl", "is-active", service, check=False).stdout.strip()


def test_the_server_side_installs_runs_upgrades_and_keeps_its_store(tmp_path: Path) -> None:
    with host(tmp_path / "host", systemd=True) as there:
        file = bring(there, package(PACKAGES, "drengine_*_amd64.deb"))
        there.run("apt-get", "install", "--yes", f"./{file.name}", seconds=200)  # as README says
        assert there.run("drengine", "--version").stdout.strip()
        there.run("/usr/share/drengine/drengine-agent", "--version")  # which the authority hands out
        assert there.run("stat", "-c", "%a %U %G", "/etc/drengine").stdout == "750 root drengine\n"
        assert is_active(there, SERVICE) == "inactive", "nothing runs before somebody says so"

        as_service = ("setpriv", "--reuid=drengine", "--regid=drengine", "--clear-groups")
        there.run(*as_service, "drengine", "target", "init", "--store", "/var/lib/drengine/store")
        there.run("cp", "/usr/share/doc/drengine/examples/target.toml", "/etc/drengine/target.toml")
        drop_in = there.root / f"etc/systemd/system/{SERVICE}.d/test.conf"
        drop_in.parent.mkdir()
        drop_in.write_text("[Service]\nPrivateDevices=no\n")  # a host in a namespace has no devices to take away
        there.run("systemctl", "daemon-reload")
        there.run("systemctl", "start", SERVICE, seconds=100, check=False)
        first = there.run("systemctl", "show", "--property=MainPID", "--value", SERVICE).stdout
        assert is_active(there, SERVICE) == "active", journal_of(there)
        told = json.loads(there.run("drengine", "status", "--store", "/var/lib/drengine/store", "--json").stdout)
        assert told["sources"] == []

        later = newer("server", tmp_path, "--agent", str(build_here(tmp_path / "agent")))
        dpkg(there, "install", bring(there, package(later, "drengine_*_amd64.deb")))
        assert is_active(there, SERVICE) == "active", journal_of(there)
        assert there.run("systemctl", "show", "--property=MainPID", "--value", SERVICE).stdout != first

        verified = there.run("systemd-analyze", "verify", "--man=no", *UNITS, check=False)
        assert (verified.returncode, "drengine" in verified.stderr) == (0, False), verified.stderr

        dpkg(there, "remove", "drengine")
        assert is_active(there, SERVICE) == "inactive"
        assert not (there.root / "usr/lib/drengine").exists()
        told_last = dpkg(there, "purge", "drengine")
        assert "kept /var/lib/drengine" in told_last
        assert (there.root / "var/lib/drengine/store/STORE").exists()


def test_the_agent_is_upgraded_while_the_kernel_tracks_and_removed_without_a_trace(
    disk: Path, target: Target, tmp_path: Path
) -> None:
    with host(tmp_path / "host", systemd=True) as there, mounted(there, disk) as data:
        pins_before = pins(there)
        dpkg(there, "install", bring(there, package(PACKAGES, "drengine-agent_*_all.deb")))
        words = ["--source", "shop", "--target", target.address, "--volume", f"data={disk}"]
        there.run("drengine-agent", "install", *words, "--yes")
        assert not (there.root / "usr/local/lib/drengine/drengine-agent").exists(), "the package has the program"
        assert is_active(there, "drengine-agent") == "active"
        write(data, "first")
        wait_for("a point", newest_has(target, "first", tmp_path / "restored"), show=lambda: journal(there))
        epoch = facts(there)["epoch"]

        changed = build_here(tmp_path / "agent", extra={"common/drengine_agent/newer.py": b""})
        later = newer("agent", tmp_path, "--agent", str(changed))
        dpkg(there, "install", bring(there, package(later, "drengine-agent_*_all.deb")))
        write(data, "second")
        wait_for("a point", newest_has(target, "second", tmp_path / "restored"), show=lambda: journal(there))
        assert facts(there)["epoch"] == epoch, "tracking went on through the upgrade"
        assert there.run("cmp", "/usr/bin/drengine-agent", bring(there, changed)).returncode == 0

        dpkg(there, "remove", "drengine-agent")
        assert is_active(there, "drengine-agent") == "inactive"
        assert pins(there) == pins_before
        dpkg(there, "purge", "drengine-agent")
        left = [name for name in there.written() if "drengine" in name and not name.startswith(("tmp:", "root:"))]
        left = [name for name in left if not name.startswith(("upper:var/lib/dpkg/", "upper:var/log/"))]
        assert left == []


def test_a_package_over_a_hand_made_installation_says_so_and_takes_it_over(
    disk: Path, target: Target, tmp_path: Path
) -> None:
    with host(tmp_path / "host", systemd=True) as there, mounted(there, disk):
        by_hand = bring(there, build_here(tmp_path / "by-hand"))
        words = ["--source", "shop", "--target", target.address, "--volume", f"data={disk}"]
        there.run(by_hand, "install", *words, "--yes")
        told = dpkg(there, "install", bring(there, package(PACKAGES, "drengine-agent_*_all.deb")))
        assert "/usr/bin/drengine-agent install hands it over" in told
        assert is_active(there, "drengine-agent") == "active", "what ran goes on"

        there.run("/usr/bin/drengine-agent", "install", "--yes")
        assert is_active(there, "drengine-agent") == "active"
        assert "ExecStart=/usr/bin/drengine-agent" in (
            there.root / "etc/systemd/system/drengine-agent.service"
        ).read_text(encoding="utf-8")
        assert not (there.root / "usr/local/bin/drengine-agent").is_symlink()
        assert not (there.root / "usr/local/lib/drengine/drengine-agent").exists()


async def test_a_recovery_host_runs_from_the_package_in_the_hosts_own_mount_namespace(tmp_path: Path) -> None:
    service, address = "drengine-standby", Address("127.0.0.1", free_port())

    def namespace(process: str) -> str:
        return there.run("readlink", f"/proc/{process}/ns/mnt").stdout

    def process() -> str:
        return there.run("systemctl", "show", "--property=MainPID", "--value", service).stdout.strip()

    async with embedded_broker(address, site="main"):
        with host(tmp_path / "host", systemd=True) as there:
            dpkg(there, "install", bring(there, package(PACKAGES, "drengine-agent_*_all.deb")))
            words = ["--name", "recovery-1", "--broker", str(address), "--mount-root", "/srv"]
            told = there.run("drengine-agent", "standby", "install", *words, "--yes").stdout
            assert "try     the connection with the broker" in told
            said = there.run("journalctl", "--no-pager", "-u", service, check=False).stdout
            assert is_active(there, service) == "active", said
            assert namespace(process()) == namespace("1"), "what it mounts is mounted for the host"
            first = process()
            later = newer("agent", tmp_path, "--agent", str(build_here(tmp_path / "agent")))
            dpkg(there, "install", bring(there, package(later, "drengine-agent_*_all.deb")))
            assert is_active(there, service) == "active" and process() != first
            instance = there.root / "var/lib/drengine-standby/instances/run-shop"
            instance.mkdir()
            refused = there.run("dpkg", "--remove", "drengine-agent", check=False, seconds=200)
            assert refused.returncode and "workloads are up on this host: run-shop" in refused.stderr
            instance.rmdir()
            dpkg(there, "purge", "drengine-agent")
            assert is_active(there, service) == "inactive"
            left = [name for name in there.written() if "drengine" in name and not name.startswith(("tmp:", "root:"))]
            assert [each for each in left if not each.startswith(("upper:var/lib/dpkg/", "upper:var/log/"))] == []


def pages_of_hints() -> set[str]:
    found = {page for hint in every_hint() for page in re.findall(r"docs/([\w.-]+\.md)", hint.text)}
    assert found
    return found


@pytest.mark.parametrize(
    ("name", "place"), [("drengine_*_amd64.deb", "drengine"), ("drengine-agent_*_all.deb", "drengine-agent")]
)
def test_the_pages_that_hints_name_are_in_each_package(name: str, place: str) -> None:
    listed = subprocess.run(
        ["dpkg", "--contents", str(package(PACKAGES, name))], check=True, capture_output=True, text=True
    ).stdout
    assert [page for page in pages_of_hints() if f"./usr/share/doc/{place}/{page}" not in listed.split()] == []


def test_what_pip_installs_brings_pages_and_units_too(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT]
    subprocess.run([*map(str, words)], check=True, capture_output=True)
    names = zipfile.ZipFile(package(tmp_path, "drengine-*.whl")).namelist()
    places = {name.partition(".data/data/")[2] for name in names}
    assert {f"share/doc/drengine/{page}" for page in pages_of_hints()} <= places
    assert {f"share/drengine/systemd/{unit}" for unit in UNITS} <= places


@pytest.mark.skipif(shutil.which("rpm") is None, reason="needs rpm (apt install rpm)")
@pytest.mark.parametrize(("rpm", "deb"), [("drengine-0*", "drengine_*"), ("drengine-agent-*", "drengine-agent_*")])
def test_the_rpm_holds_what_the_deb_holds(rpm: str, deb: str, tmp_path: Path) -> None:
    file = package(PACKAGES, f"{rpm}.rpm")
    root = tmp_path / "root"
    words = ["rpm", "--root", str(root), "--install", "--nodeps", "--noscripts", "--nosignature", "--ignorearch"]
    subprocess.run([*words, str(file)], check=True, capture_output=True)
    listed = subprocess.run(
        ["dpkg", "--contents", str(package(PACKAGES, f"{deb}.deb"))], check=True, capture_output=True, text=True
    ).stdout
    files = {line.split()[5].removeprefix("./") for line in listed.splitlines() if line.startswith("-")}
    installed = {str(path.relative_to(root)) for path in (root / "usr").rglob("*") if path.is_file()}
    assert files and files <= installed
    scripts = subprocess.run(["rpm", "-qp", "--scripts", str(file)], check=True, capture_output=True, text=True).stdout
    assert "postinstall" in scripts and "preuninstall" in scripts


def test_completions_and_man_pages_know_every_command(tmp_path: Path) -> None:
    for name, program in (("drengine_*_amd64.deb", "drengine"), ("drengine-agent_*_all.deb", "drengine-agent")):
        root = tmp_path / program
        subprocess.run(["dpkg", "--extract", str(package(PACKAGES, name)), str(root)], check=True)
        script = root / f"usr/share/bash-completion/completions/{program}"
        complete = f"_{program.replace('-', '_')}"
        typed = f'source {script}; COMP_WORDS=({program} st); COMP_CWORD=1; {complete}; echo "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", typed], check=True, capture_output=True, text=True)
        assert "status" in done.stdout.split()
        page = root / f"usr/share/man/man1/{program}.1.gz"
        if shutil.which("man"):
            shown = subprocess.run(["man", "--warnings", "-l", str(page)], check=True, capture_output=True, text=True)
            assert "status" in shown.stdout
            assert not shown.stderr
        bill = json.loads((root / f"usr/share/doc/{program}/sbom.json").read_text(encoding="utf-8"))
        assert {"msgspec", "zstandard"} <= {each["name"] for each in bill["components"]}


def journal_of(there: Host) -> str:
    return there.run("journalctl", "--no-pager", "-u", SERVICE, "-n", "40", check=False).stdout
