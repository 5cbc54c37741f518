"""Looking at hosts: made of files where they are not at hand, and at this one."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from drengine.terminal import main
from drengine_agent.beneath import beneath, identity
from drengine_agent.cli.main import commands
from drengine_agent.doctor.facts import DeviceKind, Outcome
from drengine_agent.doctor.gather import gather, volume_at

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: loop devices, BPF")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The files by which a plain host is known."""
    files = {
        "proc/self/status": "Name:\tx\nCapEff:\t000001ffffffffff\n",
        "proc/self/mountinfo": "29 1 259:1 / / rw - ext4 /dev/nvme0n1p1 rw\n",
        "proc/sys/kernel/osrelease": "6.1.0-18-amd64\n",
        "proc/1/environ": "HOME=/\0TERM=linux\0",
        "sys/kernel/security/lockdown": "[none] integrity confidentiality\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def put(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_a_plain_host(root: Path) -> None:
    seen = gather(root=root, try_tracker=False)
    assert (seen.container, seen.lockdown, seen.capabilities_missing, seen.modules_missing) == ("", "none", (), ())
    assert seen.self_test.outcome is Outcome.NOT_RUN


CONTAINERS = {
    "wsl 1": ("proc/sys/kernel/osrelease", "4.4.0-19041-Microsoft", "wsl1"),
    "wsl 2": ("proc/sys/kernel/osrelease", "5.15.90.1-microsoft-standard-WSL2", "wsl2"),
    "nspawn": ("run/systemd/container", "systemd-nspawn", "systemd-nspawn"),
    "lxc": ("proc/1/environ", "PATH=/bin\0container=lxc\0", "lxc"),
}


@pytest.mark.parametrize(("name", "text", "told"), CONTAINERS.values(), ids=CONTAINERS.keys())
def test_a_container_is_known(name: str, text: str, told: str, root: Path) -> None:
    put(root, name, text)
    assert gather(root=root, try_tracker=False).container == told


@pytest.mark.parametrize(("mark", "told"), [(".dockerenv", "docker"), ("run/.containerenv", "podman")])
def test_an_images_mark_means_a_container_only_where_the_root_is_no_disk(mark: str, told: str, root: Path) -> None:
    put(root, mark, "")
    assert gather(root=root, try_tracker=False).container == ""
    put(root, "proc/self/mountinfo", "29 1 0:52 / / rw - overlay overlay rw,lowerdir=/a\n")
    assert gather(root=root, try_tracker=False).container == told


def test_missing_privileges_and_lockdown_are_seen(root: Path) -> None:
    put(root, "proc/self/status", "CapEff:\t0000000000000000\n")
    put(root, "sys/kernel/security/lockdown", "none integrity [confidentiality]\n")
    seen = gather(root=root, try_tracker=False)
    assert "CAP_SYS_ADMIN" in seen.capabilities_missing
    assert seen.lockdown == "confidentiality"


def test_systemd_is_running_where_its_directory_is(root: Path) -> None:
    assert gather(root=root, try_tracker=False).systemd in ("installed", "absent")
    (root / "run/systemd/system").mkdir(parents=True)
    assert gather(root=root, try_tracker=False).systemd == "running"


def test_files_directories_and_nothing_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(5000))
    seen = [volume_at("v", tmp_path / name) for name in ("file", ".", "none")]
    assert [each.kind for each in seen] == [DeviceKind.FILE, DeviceKind.OTHER, DeviceKind.OTHER]
    assert seen[0].size_bytes == 5000
    assert seen[2].problem == "No such file or directory"


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A loop device over a file: both."""
    image = tmp_path / "image"
    image.write_bytes(bytes(8 << 20))
    made = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=True)
    device = Path(made.stdout.strip())
    yield device, image
    subprocess.run(["losetup", "--detach", device], check=True)


@needs_root
def test_this_host_can_or_says_why_and_exits_by_it(
    loop: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--volume", f"data={loop[0]}", "--state-directory", str(tmp_path / "state")]
    code = main(commands, ["doctor", "--json", "--config", "/none", *words])
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] == (code == 0)
    assert code in (0, 90)
    assert [each["volume"] for each in told["volumes"]] == ["data"]
    outcome = told["facts"]["self_test"]["outcome"]
    if told["ok"]:
        assert (outcome, told["tracker"]) == ("passed", "ebpf")
    else:
        assert any(each["level"] == "fail" and each["hint"] for each in told["findings"])


@needs_root
def test_the_self_test_leaves_no_device_and_no_pin(capsys: pytest.CaptureFixture[str]) -> None:
    def traces() -> set[str]:
        backed = subprocess.run(
            ["losetup", "--list", "--noheadings", "--output=BACK-FILE"], capture_output=True, text=True, check=True
        )
        pins = Path("/sys/fs/bpf/drengine")
        kept = {path.name for path in pins.iterdir()} if pins.exists() else set()
        return {line for line in backed.stdout.split() if "self-test" in line} | {k for k in kept if "self-test" in k}

    main(commands, ["doctor", "--config", "/none"])
    assert capsys.readouterr().out
    assert traces() == set()


@needs_root
@pytest.mark.fault(29)
def test_a_state_directory_on_a_protected_volume_is_refused(
    loop: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The device that holds the file system, the disk below it, and the file below that."""
    device, image = loop
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    place = tmp_path / "mounted"
    place.mkdir()
    subprocess.run(["mount", device, place], check=True)
    try:
        assert {identity(device), identity(image)} <= beneath(place / "not" / "yet")
        for volume in (device, image):
            words = ["--volume", f"data={volume}", "--state-directory", str(place / "state"), "--no-self-test"]
            assert main(commands, ["doctor", "--config", "/none", *words]) == 90
            assert "lies on the protected volume data" in capsys.readouterr().out
        words = ["--volume", f"data={device}", "--state-directory", "/dev/shm/state", "--no-self-test"]
        assert main(commands, ["doctor", "--config", "/none", *words]) == 0
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_tracker_that_does_not_exist_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(commands, ["doctor", "--config", "/none", "--tracker", "magic"]) == 90
    assert len(capsys.readouterr().err.splitlines()) == 2


@needs_root
def test_a_disk_that_is_named_twice_is_seen(loop: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(loop[0])
    named = {"one": loop[0], "other": tmp_path / "link", "image": loop[1]}
    seen = gather(volumes=named, try_tracker=False)
    assert [set(each.within) for each in seen.volumes] == [{"other", "image"}, {"one", "image"}, set()]
