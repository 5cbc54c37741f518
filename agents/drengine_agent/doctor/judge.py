"""From facts to findings, a pure function: it claims nothing that was not tried, and names the tracker to be used."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass

from drengine.terminal import human_bytes
from drengine_agent.capture.backing import WEAK_HINT
from drengine_agent.capture.ebpf.probe import KERNEL_MIN
from drengine_agent.doctor.facts import DeviceKind, Host, Outcome, Place, Reach, Volume

PYTHON_OLDEST = (3, 11)
BIO_TRIAL = "bio_programs"
"""Matters only to volumes on device mapper and md."""
TRIALS = {
    "system_call": "the system call bpf(2)",
    "types": "the kernel's description of its types (BTF)",
    "maps": "maps in memory",
    "request_programs": "programs for disks",
    "attaching": "attaching to the block layer's events",
    "pinning": "pinning in /sys/fs/bpf",
    "grace_period": "waiting for programs (membarrier)",
}
FREE_BYTES_LEAST = 64 << 20


class Level(enum.StrEnum):
    """How much a finding matters."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at.

    Attributes:
        id: stable, for scripts.
        level: `fail` refuses the installation.
        seen: what was seen.
        hint: what to do; empty when all is well.
    """

    id: str
    level: Level
    seen: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which tracker a volume would get.

    Attributes:
        volume: its name.
        path: where it is.
        tracker: `ebpf`, `nbd` or `scan`; empty when none can.
        why: in a sentence.
    """

    volume: str
    path: str
    tracker: str
    why: str


@dataclass(frozen=True, slots=True)
class Report:
    """What the doctor says.

    Attributes:
        findings: everything looked at.
        tracker: for the whole group of volumes, which share one; empty when none can.
        choices: the same by volume, with the reason.
        tried: the self-test passed.
    """

    findings: tuple[Finding, ...]
    tracker: str
    choices: tuple[Choice, ...]
    tried: bool

    @property
    def verdict(self) -> str:
        """In a sentence, which claims no more than was tried."""
        if not self.ok:
            return "This host can't be protected as asked."
        if self.tracker == "ebpf" and not self.tried:
            return "Nothing speaks against tracker ebpf, but it was not tried here."
        return f"This host can be protected with tracker {self.tracker}."

    @property
    def ok(self) -> bool:
        """Nothing speaks against protecting this host."""
        return all(finding.level is not Level.FAIL for finding in self.findings)


def judge(host: Host) -> Report:
    """What the facts mean."""
    refused = "" if host.wanted in ("nbd", "scan") else _kernel_refuses(host)
    choices = [_choice(host, volume, refused) for volume in host.volumes]
    tracker = _shared(host, choices, refused)
    choices = [_as_the_others(choice, tracker, choices) for choice in choices]
    findings = [
        *_python(host),
        *(_kernel(host) if _needs_kernel(host) else ()),
        *_volumes(host, choices, refused),
        *(finding for place in host.places for finding in _place(place)),
        *_surroundings(host),
    ]
    return Report(tuple(findings), tracker, tuple(choices), host.self_test.outcome is Outcome.PASSED)


def kernel_version(release: str) -> tuple[int, int]:
    """``6.18.44-fc`` is (6, 18); (0, 0) when it can't be read."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _shared(host: Host, choices: list[Choice], refused: str) -> str:
    """All volumes of a server are one consistency group, so one tracker sees them all."""
    if host.wanted in ("nbd", "scan"):
        return host.wanted
    if choices and not any(choice.tracker for choice in choices):
        return ""
    return "scan" if refused or any(choice.tracker == "scan" for choice in choices) else "ebpf"


def _as_the_others(choice: Choice, tracker: str, all: list[Choice]) -> Choice:
    if choice.tracker in ("", tracker):
        return choice
    other = next(each for each in all if each.tracker == tracker)
    why = f"{other.volume} can only be compared, and the volumes of a server share one tracker"
    return Choice(choice.volume, choice.path, tracker, why)


def _needs_kernel(host: Host) -> bool:
    """Files are compared in any case; for devices in use only the kernel's events give recovery points."""
    if host.wanted == "auto":
        return not host.volumes or any(volume.kind is not DeviceKind.FILE for volume in host.volumes)
    return host.wanted == "ebpf"


def _kernel_refuses(host: Host) -> str:
    """Why this kernel can't track, or nothing."""
    failed = [finding for finding in _kernel(host) if finding.level is Level.FAIL]
    return failed[0].seen if failed else ""


def _python(host: Host) -> Iterator[Finding]:
    version = ".".join(map(str, host.python))
    if host.python < PYTHON_OLDEST:
        yield Finding("python", Level.FAIL, f"Python {version}", "Install Python 3.11 or later.")
    else:
        yield Finding("python", Level.OK, f"Python {version} on {host.machine}")
    if host.modules_missing:
        listed = ", ".join(host.modules_missing)
        yield Finding(
            "python-modules",
            Level.FAIL,
            f"this Python lacks {listed}",
            "Install the whole Python, not a minimal one (Debian: python3, not python3-minimal).",
        )


def _kernel(host: Host) -> Iterator[Finding]:
    """Trials decide. Of what failed together the cause is told, not each effect."""
    obstacles = {name: why for name, why in host.trials.items() if why and name != BIO_TRIAL}
    able = bool(host.trials) and not obstacles
    oldest = KERNEL_MIN.get(host.machine, (0, 0))
    old = not able and kernel_version(host.kernel) < oldest
    missing = "" if able else _privilege_missing(host)
    if old:
        wanted = f"{'.'.join(map(str, oldest))} on {host.machine}"
        hint = f"Boot a kernel of {wanted} or later, or protect by comparing: --tracker scan."
        yield Finding("kernel", Level.FAIL, f"Linux {host.kernel} is older than {wanted}", hint)
    else:
        yield Finding("kernel", Level.OK, f"Linux {host.kernel} on {host.machine}")
    if missing:
        hint = "Ask again as root of the host itself (sudo drengine-agent doctor); the agent runs as root."
        yield Finding("privileges", Level.FAIL, missing, hint)
    else:
        yield Finding("privileges", Level.OK, f"user {host.user_id}, with the capabilities that tracking needs")
    if host.lockdown not in ("", "none"):
        yield Finding("lockdown", Level.OK, f"kernel lockdown is `{host.lockdown}`; the trials show what it leaves")
    if not (old or missing):
        for name, why in obstacles.items():
            yield Finding(name.replace("_", "-"), Level.FAIL, f"{TRIALS.get(name, name)}: {why}", _hint_for(host))
    if able:
        yield Finding("trials", Level.OK, "the kernel takes the tracker's maps, programs, attachments and pins")
    if not obstacles or host.self_test.outcome is not Outcome.FAILED:
        yield _self_test(host)


def _privilege_missing(host: Host) -> str:
    if host.user_id != 0:
        return f"user {host.user_id} is not root"
    return f"root without {', '.join(host.capabilities_missing)}" if host.capabilities_missing else ""


def _hint_for(host: Host) -> str:
    if host.lockdown == "confidentiality":
        return "Boot with lockdown=integrity, or protect by comparing: --tracker scan."
    if host.container:
        return "Ask on the host itself: a container's rules may stand in the way."
    return "docs/ebpf.md says which kernel options it takes; or protect by comparing: --tracker scan."


def _self_test(host: Host) -> Finding:
    test = host.self_test
    if test.outcome is Outcome.PASSED:
        return Finding("self-test", Level.OK, test.seen)
    if test.outcome is Outcome.FAILED:
        hint = "What it says is what the kernel answered; until it passes, protect by comparing: --tracker scan."
        return Finding("self-test", Level.FAIL, test.seen, hint)
    return Finding("self-test", Level.WARN, f"not run: {test.seen}", "Until it has run, nothing is known for sure.")


def _choice(host: Host, volume: Volume, refused: str) -> Choice:
    path = str(volume.path)
    if volume.problem:
        return Choice(volume.name, path, "", volume.problem)
    if volume.kind is DeviceKind.OTHER:
        return Choice(volume.name, path, "", "it is neither a block device nor a regular file")
    if host.wanted in ("nbd", "scan"):
        return Choice(volume.name, path, host.wanted, "asked for")
    if refused:
        return Choice(volume.name, path, "scan", refused)
    if volume.kind is DeviceKind.FILE:
        return Choice(volume.name, path, "scan", "a regular file: the kernel's events name devices, not files")
    if volume.kind is DeviceKind.BIO and host.trials.get(BIO_TRIAL):
        why = f"this kernel refuses programs for device mapper and md: {host.trials[BIO_TRIAL]}"
        return Choice(volume.name, path, "scan", why)
    if volume.refusal:
        return Choice(volume.name, path, "scan", f"{volume.device} is {volume.refusal}")
    tried = "which was not tried here" if _untried(host, volume) else "which the self-test saw work"
    return Choice(volume.name, path, "ebpf", f"{volume.device} completes {volume.kind}s, {tried}")


def _untried(host: Host, volume: Volume) -> bool:
    return host.self_test.outcome is not Outcome.PASSED or volume.kind not in host.self_test.kinds


def _volumes(host: Host, choices: list[Choice], refused: str) -> Iterator[Finding]:
    for volume, choice in zip(host.volumes, choices, strict=True):
        what = f"{volume.name} = {volume.path}"
        if not choice.tracker:
            yield Finding("volume", Level.FAIL, f"{what}: {choice.why}", "Name a disk, a partition or a file.")
        elif choice.why == refused:  # said already, of the kernel
            yield Finding("volume", Level.OK, f"{what}: {human_bytes(volume.size_bytes)}")
        elif host.wanted == "ebpf" and choice.tracker != "ebpf":
            hint = "Take this volume out, or protect by comparing: --tracker scan."
            yield Finding("volume", Level.FAIL, f"{what}: {choice.why}", hint)
        elif choice.tracker == "scan" and host.wanted == "auto":
            hint = "Every block is read at each interval, and points need a quiet file or a snapshot (docs/agent.md)."
            yield Finding("volume", Level.WARN, f"{what}: only by comparing; {choice.why}", hint)
        elif choice.tracker == "ebpf" and host.self_test.outcome is Outcome.PASSED and _untried(host, volume):
            hint = "The self-test's device completes requests; compare now and then: drengine-agent sync."
            yield Finding("volume", Level.WARN, f"{what}: {choice.why}", hint)
        else:
            memory = f", {human_bytes(bitmap_bytes(volume.size_bytes))} of kernel memory" * (choice.tracker == "ebpf")
            yield Finding("volume", Level.OK, f"{what}: {human_bytes(volume.size_bytes)}, {choice.tracker}{memory}")
        if volume.within:
            hint = "Name the disk or its partitions, each once."
            seen = f"{what}: its bytes are also in volume {', '.join(volume.within)}"
            yield Finding("volume-twice", Level.FAIL, seen, hint)
        if volume.weak:
            yield Finding("identity", Level.WARN, f"{what}: nothing tells it from another disk", WEAK_HINT)


def bitmap_bytes(size_bytes: int) -> int:
    """Kernel memory that tracking a volume takes: two bitmaps of a bit for each 4 KiB."""
    return 2 * (size_bytes // 4096 // 8 + 1)


def _place(place: Place) -> Iterator[Finding]:
    id = place.role.replace(" ", "-")
    if place.problem:
        yield Finding(id, Level.WARN, f"{place.role} {place.path}: {place.problem}", "Check it before you start.")
    elif place.on_volumes:
        yield Finding(
            id,
            Level.FAIL,
            f"{place.role} {place.path} lies on the protected volume {', '.join(place.on_volumes)}: "
            "each shipped change would make a change",
            "Put it elsewhere: another disk, or for the state directory --state-directory /run/drengine-agent."
            if place.role == "state directory"
            else "Put the store on a disk that is not protected, best on another host.",
        )
    elif place.free_bytes < FREE_BYTES_LEAST:
        hint = f"Free {human_bytes(FREE_BYTES_LEAST)} or more there."
        yield Finding(id, Level.WARN, f"{place.role} {place.path}: {human_bytes(place.free_bytes)} free", hint)
    else:
        yield Finding(id, Level.OK, f"{place.role} {place.path}: {human_bytes(place.free_bytes)} free")


def _surroundings(host: Host) -> Iterator[Finding]:
    if host.container == "wsl1":
        hint = "Use WSL 2 or a Linux host."
        yield Finding("container", Level.FAIL, "WSL 1 has no Linux kernel and no block devices", hint)
    elif host.container == "wsl2":
        hint = "Only its virtual disks can be protected, not Windows' own; WSL may stop at any time."
        yield Finding("container", Level.WARN, "this is WSL 2", hint)
    elif host.container:
        hint = "Install it on the host: tracking is the kernel's, and it sees every container's writes there."
        yield Finding("container", Level.WARN, f"this is a container ({host.container})", hint)
    if host.systemd == "running":
        yield Finding("systemd", Level.OK, "systemd is running")
    elif host.systemd == "installed":
        hint = "The unit is written and enabled; it starts at the next boot with systemd."
        yield Finding("systemd", Level.WARN, "systemd is installed but not running here", hint)
    else:
        hint = "No unit can be started: let your own supervisor run `drengine-agent run`."
        yield Finding("systemd", Level.WARN, "there is no systemd", hint)
    for party in host.parties:
        yield _party(party)
    for trouble in host.troubles:
        yield Finding(trouble.id, Level.FAIL, trouble.seen, trouble.hint)


def _party(party: Reach) -> Finding:
    if not party.problem:
        return Finding(party.role, Level.OK, f"{party.address} {party.tried}")
    silent = f"Start the {party.role} or open the way to it; the agent goes on trying, and tracks meanwhile."
    level = Level.FAIL if party.refused else Level.WARN
    return Finding(party.role, level, f"{party.address}: {party.problem}", party.hint or silent)
