"""What the doctor says about hosts that are not at hand: old kernels, locked-down ones, containers, odd devices."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drengine_agent.doctor.facts import DeviceKind, Host, Outcome, Place, Reach, SelfTest, Volume
from drengine_agent.doctor.judge import BIO_TRIAL, TRIALS, Level, Report, bitmap_bytes, judge, kernel_version
from tests.agent.doctor.hosts import DISK, GOOD, failing, host, untried


def levels(report: Report) -> dict[str, Level]:
    """The worst level of each finding."""
    order = [Level.OK, Level.WARN, Level.FAIL]
    found: dict[str, Level] = {}
    for each in report.findings:
        found[each.id] = max(found.get(each.id, Level.OK), each.level, key=order.index)
    return found


def test_a_good_host_has_nothing_to_hear() -> None:
    report = judge(host())
    assert set(levels(report).values()) == {Level.OK}
    assert (report.ok, report.tracker) == (True, "ebpf")
    assert report.verdict == "This host can be protected with tracker ebpf."
    assert "self-test saw work" in report.choices[0].why


@pytest.mark.fault(76)
def test_a_disk_that_nothing_tells_from_another_is_named_and_something_asked_for() -> None:
    report = judge(host(volumes=(dataclasses.replace(DISK, weak=True),)))
    (found,) = [finding for finding in report.findings if finding.id == "identity"]
    assert (report.ok, found.level) == (True, Level.WARN)
    assert "/dev/vdb" in found.seen
    assert "serial" in found.hint
    assert "anonymous = true" in found.hint


REFUSED = {
    "an old python": (host(python=(3, 9, 2)), "python"),
    "a minimal python": (host(modules_missing=("ssl",)), "python-modules"),
    "an old kernel": (failing(*TRIALS, kernel="5.4.0-216-generic", wanted="ebpf"), "kernel"),
    "an old kernel for its processor": (failing("request_programs", kernel="5.15.0", machine="aarch64"), "kernel"),
    "a kernel of no known version": (failing("types", kernel="custom", wanted="ebpf"), "kernel"),
    "lockdown": (failing("maps", lockdown="confidentiality", wanted="ebpf"), "maps"),
    "not root": (failing(*TRIALS, user_id=1000, wanted="ebpf"), "privileges"),
    "root without its powers": (failing(*TRIALS, capabilities_missing=("CAP_SYS_ADMIN",)), "privileges"),
    "no bpffs": (failing("pinning", why="/sys/fs/bpf can't be mounted: No such device"), "pinning"),
    "no types": (failing("types", why="/sys/kernel/btf/vmlinux: No such file or directory"), "types"),
    "no event": (failing("attaching", why="No such file or directory"), "attaching"),
    "a container's rules": (failing("system_call", container="docker"), "system-call"),
    "wsl 1": (untried(kernel="4.4.0-19041-Microsoft", container="wsl1", wanted="scan"), "container"),
    "a self-test that failed": (
        host(self_test=SelfTest(Outcome.FAILED, "wrote 0+4096, saw nothing"), wanted="ebpf"),
        "self-test",
    ),
    "a file for the kernel's events": (
        host(wanted="ebpf", volumes=(Volume("f", Path("/f"), kind=DeviceKind.FILE, size_bytes=1),)),
        "volume",
    ),
    "a device of no known kind": (
        host(
            wanted="ebpf",
            volumes=(
                Volume("z", Path("/dev/zd0"), kind=DeviceKind.BIO, device="zd0", refusal="a zd device", size_bytes=1),
            ),
        ),
        "volume",
    ),
    "a volume that is not there": (host(volumes=(dataclasses.replace(DISK, problem="No such file"),)), "volume"),
    "device mapper that the kernel refuses": (
        host(
            wanted="ebpf",
            trials={**GOOD.trials, BIO_TRIAL: "invalid argument"},
            volumes=(Volume("m", Path("/dev/mapper/m"), kind=DeviceKind.BIO, device="dm-0", size_bytes=1),),
        ),
        "volume",
    ),
    "a directory": (host(volumes=(Volume("d", Path("/srv")),)), "volume"),
    "state on a protected volume": (
        host(places=(Place("state directory", Path("/var/lib/x"), ("data",), 1 << 33),)),
        "state-directory",
    ),
    "a store on a protected volume": (host(places=(Place("store", Path("/store"), ("data",), 1 << 33),)), "store"),
}


@pytest.mark.parametrize(("facts", "finding"), REFUSED.values(), ids=REFUSED.keys())
def test_what_stands_in_the_way_is_named_with_what_to_do(facts: Host, finding: str) -> None:
    report = judge(facts)
    failed = [each for each in report.findings if each.level is Level.FAIL]
    assert not report.ok
    assert [each.id for each in failed] == [finding], report
    assert failed[0].hint
    assert report.verdict == "This host can't be protected as asked."


pytestmark = pytest.mark.fault(29)

WARNED = {
    "systemd not running": (host(systemd="installed"), "systemd"),
    "no systemd": (host(systemd="absent"), "systemd"),
    "a container": (host(container="docker"), "container"),
    "wsl 2": (host(container="wsl2"), "container"),
    "device mapper": (
        host(volumes=(Volume("m", Path("/dev/mapper/m"), kind=DeviceKind.BIO, device="dm-0", size_bytes=1),)),
        "volume",
    ),
    "little space": (host(places=(Place("state directory", Path("/s"), free_bytes=1 << 20),)), "state-directory"),
    "a silent target": (host(parties=(Reach("outpost:7440", "Connection refused"),)), "target"),
    "a test that was not run": (untried(), "self-test"),
}


@pytest.mark.parametrize(("facts", "finding"), WARNED.values(), ids=WARNED.keys())
def test_what_is_doubtful_is_said_and_does_not_refuse(facts: Host, finding: str) -> None:
    report = judge(facts)
    assert report.ok
    assert [each.id for each in report.findings if each.level is Level.WARN] == [finding]
    assert all(each.hint for each in report.findings if each.level is not Level.OK)


def test_what_was_tried_outweighs_a_version_number_and_a_mode() -> None:
    """Distributions bring features to old kernels; what was seen to work, works."""
    report = judge(host(kernel="4.18.0-553.el9", lockdown="confidentiality", wanted="ebpf"))
    assert report.ok
    assert "`confidentiality`" in next(each.seen for each in report.findings if each.id == "lockdown")


def test_of_what_failed_together_the_cause_is_told() -> None:
    report = judge(failing(*TRIALS, user_id=1000))
    assert [each.id for each in report.findings if each.level is Level.FAIL] == ["privileges"]


def test_when_the_kernel_can_t_track_comparing_is_named_with_the_reason() -> None:
    report = judge(failing(*TRIALS, kernel="4.18.0-553.el8"))
    assert not report.ok, "comparing gives no recovery point of a disk in use: somebody has to ask for it"
    assert report.tracker == "scan"
    assert report.choices[0].tracker == "scan"
    assert "4.18" in report.choices[0].why


def test_files_alone_ask_nothing_of_the_kernel() -> None:
    file = Volume("image", Path("/srv/image"), kind=DeviceKind.FILE, size_bytes=1 << 20)
    assert judge(failing("maps", kernel="4.18.0", volumes=(file,))).ok
    assert not judge(failing("maps", kernel="4.18.0", volumes=(file, DISK))).ok


def test_volumes_share_one_tracker_and_the_odd_one_is_named() -> None:
    file = Volume("image", Path("/srv/image"), kind=DeviceKind.FILE, size_bytes=1 << 20)
    report = judge(host(volumes=(DISK, file)))
    assert [choice.tracker for choice in report.choices] == ["scan", "scan"]
    assert report.choices[0].why.startswith("image can only be compared")


def test_what_is_asked_for_is_not_judged_by_what_it_does_not_need() -> None:
    report = judge(untried(kernel="3.10.0", user_id=1000, wanted="scan"))
    assert report.ok
    assert report.tracker == "scan"
    assert not {"kernel", "self-test", "privileges"} & levels(report).keys()


def test_nothing_is_claimed_that_was_not_tried() -> None:
    report = judge(untried())
    assert report.verdict == "Nothing speaks against tracker ebpf, but it was not tried here."
    assert "not tried here" in report.choices[0].why


def test_a_tebibyte_takes_64_mebibytes() -> None:
    assert bitmap_bytes(1 << 40) == (64 << 20) + 2


@pytest.mark.parametrize(("release", "version"), [("6.18.44-fc", (6, 18)), ("5.15", (5, 15)), ("", (0, 0))])
def test_a_kernel_names_its_version(release: str, version: tuple[int, int]) -> None:
    assert kernel_version(release) == version


volumes = st.builds(
    Volume,
    st.sampled_from(["a", "b"]),
    st.just(Path("/dev/x")),
    st.sampled_from(["", "Permission denied"]),
    st.sampled_from(DeviceKind),
    st.sampled_from(["", "loop0", "dm-0"]),
    st.sampled_from(["", "memory"]),
    st.integers(0, 1 << 50),
)
hosts = st.builds(
    Host,
    python=st.sampled_from([(3, 9, 0), (3, 12, 1)]),
    modules_missing=st.sampled_from([(), ("ssl",)]),
    machine=st.just("x86_64"),
    kernel=st.sampled_from(["4.18.0", "6.1.0", "?"]),
    user_id=st.sampled_from([0, 1000]),
    capabilities_missing=st.sampled_from([(), ("CAP_SYS_ADMIN",)]),
    lockdown=st.sampled_from(["", "none", "integrity", "confidentiality"]),
    container=st.sampled_from(["", "wsl1", "docker"]),
    trials=st.dictionaries(st.sampled_from([*TRIALS, BIO_TRIAL]), st.sampled_from(["", "Operation not permitted"])),
    systemd=st.sampled_from(["running", "absent"]),
    self_test=st.builds(SelfTest, st.sampled_from(Outcome), st.just("seen"), st.just(())),
    wanted=st.sampled_from(["auto", "ebpf", "nbd", "scan"]),
    volumes=st.lists(volumes, max_size=3).map(tuple),
)


@given(hosts)
def test_every_host_gets_a_whole_answer(facts: Host) -> None:
    report = judge(facts)
    assert all(each.seen and (each.hint or each.level is Level.OK) for each in report.findings)
    assert [choice.volume for choice in report.choices] == [volume.name for volume in facts.volumes]
    assert {choice.tracker for choice in report.choices} <= {"", report.tracker}
    if facts.wanted != "auto":
        assert not report.ok or report.tracker == facts.wanted
    if report.ok and report.tracker == "ebpf":
        assert facts.self_test.outcome is not Outcome.FAILED
