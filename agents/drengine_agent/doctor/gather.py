"""Looking at a host. Nothing is changed; only the self-test makes something, and takes it away again."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from drengine.linux.identity import evidence_of, is_weak
from drengine.linux.mounts import read_mounts
from drengine.model.errors import DrengineError
from drengine_agent.beneath import Identity, beneath, beneath_device, identity
from drengine_agent.capture.ebpf.device import BlockDevice
from drengine_agent.capture.ebpf.probe import probe, self_test
from drengine_agent.capture.ebpf.program import REQUEST_EVENT
from drengine_agent.doctor.facts import DeviceKind, Host, Outcome, Place, Reach, SelfTest, Trouble, Volume
from drengine_agent.doctor.judge import BIO_TRIAL, TRIALS

ROOT = Path("/")
MODULES_NEEDED = ("ssl", "ctypes", "zlib", "mmap", "fcntl", "asyncio", "socket", "tomllib")
CAPABILITIES = {"CAP_SYS_ADMIN": 21, "CAP_DAC_READ_SEARCH": 2, "CAP_IPC_LOCK": 14}
"""What tracking, freezing and reading disks take; SYS_ADMIN includes CAP_BPF and CAP_PERFMON."""


def gather(
    *,
    wanted: str = "auto",
    volumes: Mapping[str, Path] | None = None,
    places: Mapping[str, Path] | None = None,
    parties: Sequence[Reach] = (),
    troubles: Sequence[Trouble] = (),
    try_tracker: bool = True,
    root: Path = ROOT,
) -> Host:
    """Look at this host.

    Args:
        wanted: the tracker asked for, or `auto`.
        volumes: what is to be protected, by name.
        places: directories that are written to, by role.
        parties, troubles: what was found out about others, and about files.
        try_tracker: run the self-test, where it matters.
        root: where `proc`, `sys` and `run` are found.
    """
    volumes = volumes or {}
    trials: dict[str, str] = {}
    if wanted in ("nbd", "scan"):
        test = SelfTest.skipped("the tracker asked for does not need it")
    elif not try_tracker:
        test = SelfTest.skipped("asked not to")
    else:
        trials, test = _try_tracker()
    return Host(
        python=sys.version_info[:3],
        modules_missing=tuple(name for name in MODULES_NEEDED if importlib.util.find_spec(name) is None),
        machine=platform.machine(),
        kernel=platform.release(),
        user_id=os.geteuid(),
        capabilities_missing=_capabilities_missing(root),
        lockdown=_lockdown(root),
        container=_container(root),
        trials=trials,
        systemd=_systemd(root),
        self_test=test,
        wanted=wanted,
        volumes=tuple(_apart(volume_at(name, path, root=root), volumes, root) for name, path in volumes.items()),
        places=tuple(place_of(role, path, volumes, root=root) for role, path in (places or {}).items()),
        parties=tuple(parties),
        troubles=tuple(troubles),
    )


def _try_tracker() -> tuple[dict[str, str], SelfTest]:
    facts = probe()
    trials = {name: getattr(facts, name) for name in (*TRIALS, BIO_TRIAL)}
    done = self_test()
    outcome = Outcome.PASSED if done.passed else Outcome.FAILED
    kinds = (DeviceKind.REQUEST,) if REQUEST_EVENT in done.events else ()
    return trials, SelfTest(outcome, done.seen, kinds)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _capabilities_missing(root: Path) -> tuple[str, ...]:
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", _text(root / "proc/self/status"), re.MULTILINE)
    held = int(found[1], 16) if found else 0
    return tuple(name for name, bit in CAPABILITIES.items() if not held >> bit & 1)


def _lockdown(root: Path) -> str:
    found = re.search(r"\[(\w+)\]", _text(root / "sys/kernel/security/lockdown"))
    return found[1] if found else ""


def _container(root: Path) -> str:
    release = _text(root / "proc/sys/kernel/osrelease")
    if "microsoft" in release.lower():
        return "wsl2" if "wsl2" in release.lower() or "-standard" in release else "wsl1"
    named = _text(root / "run/systemd/container")
    if named:
        return named
    for mark, name in ((".dockerenv", "docker"), ("run/.containerenv", "podman")):
        if (root / mark).exists() and not _root_is_a_disk(root):  # a virtual machine made from an image has marks, too
            return name
    found = re.search(r"(?:^|\0)container=([\w-]+)", _text(root / "proc/1/environ"))
    return found[1] if found else ""


def _root_is_a_disk(root: Path) -> bool:
    try:
        mounts = read_mounts(root / "proc/self/mountinfo")
    except OSError:
        return False
    return any((each.root, each.at) == ("/", ROOT) and each.device[0] for each in mounts)


def _systemd(root: Path) -> str:
    if (root / "run/systemd/system").is_dir():
        return "running"
    return "installed" if shutil.which("systemctl") else "absent"


def volume_at(name: str, path: Path, *, root: Path = ROOT) -> Volume:
    """What stands behind a path."""
    try:
        found = path.stat()
        if stat.S_ISREG(found.st_mode):
            return Volume(name, path, kind=DeviceKind.FILE, size_bytes=found.st_size)
        if not stat.S_ISBLK(found.st_mode):
            return Volume(name, path)
        numbers = os.major(found.st_rdev), os.minor(found.st_rdev)
        device = BlockDevice.of_number(*numbers, sysfs=root / "sys/dev/block")
    except OSError as error:
        return Volume(name, path, problem=error.strerror or str(error))
    except DrengineError as error:
        return Volume(name, path, problem=error.message)
    return Volume(
        name,
        path,
        problem="" if device.size_bytes else "it has no size: no medium, or nothing behind it",
        kind=DeviceKind.BIO if device.bio else DeviceKind.REQUEST,
        device=device.name,
        refusal=device.refusal,
        size_bytes=device.size_bytes,
        weak=_is_weak(path),
    )


def _is_weak(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return is_weak(evidence_of(descriptor))
    finally:
        os.close(descriptor)


def place_of(role: str, path: Path, volumes: Mapping[str, Path], *, root: Path = ROOT) -> Place:
    """A directory that is written to, or would be, and the protected volumes that it lies on."""
    try:
        under = beneath(path, root=root)
        free = _free_bytes(path)
    except OSError as error:
        return Place(role, path, problem=error.strerror or str(error))
    on = tuple(name for name, volume in volumes.items() if _identity_of(volume) in under)
    return Place(role, path, on_volumes=on, free_bytes=free)


def _identity_of(path: Path) -> Identity | None:
    try:
        return identity(path)
    except OSError:
        return None


def _free_bytes(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _apart(volume: Volume, volumes: Mapping[str, Path], root: Path) -> Volume:
    """With the names of those volumes whose bytes are also this one's."""
    own = _identity_of(volume.path)
    if own is None or volume.problem:
        return volume
    under = beneath_device((own[1], own[2]), root=root) if own[0] == "device" else {own}
    others = {name: _identity_of(path) for name, path in volumes.items() if name != volume.name}
    return replace(volume, within=tuple(name for name, each in others.items() if each in under))
