"""Every fault that would end a failover after its fence is found before it, by its id, within one cycle.

Each is planted for real on a site of real parties, and found by the orchestrator that watches. A failover that is begun
all the same stops at once, and nothing is fenced.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from drengine.failover.errors import NOT_READY, UNFENCED
from tests.failover.preflight.parties import Site, site, until
from tests.system.disks import skip_unless_disks_can_be_attached
from tests.system.networks import SERVICES, skip_unless_networks_can_be_made

pytestmark = [pytest.mark.timeout(300), pytest.mark.campaign]
IPTABLES = shutil.which("iptables")
SECONDS_MAX = 20.0
Plant = Callable[[Site], contextlib.AbstractContextManager[object]]


@pytest.fixture(scope="module")
def at_work() -> Iterator[Site]:
    """The site, whose runbook has been drilled and is ready."""
    skip_unless_networks_can_be_made()
    skip_unless_disks_can_be_attached()
    folder = Path(tempfile.mkdtemp(prefix="dr-pf-"))
    folder.chmod(0o755)
    try:
        with site(folder) as made:
            made.keep(made.book())
            run = drilled(made)
            assert run["outcome"] == "completed", run
            assert made.failing() == set()
            yield made
    finally:
        shutil.rmtree(folder)


def begun(site: Site, mode: str) -> Any:
    """A run of that mode as it stands when it has ended or stopped."""
    run = site.rest.ask("POST", "/runs", {"mode": mode, "runbook": "shop"})["run"]

    def ended() -> Any:
        found = site.rest.ask("GET", f"/runs/{run}")
        return found if found["state"] in ("finished", "stopped") else None

    return until(ended, f"the end of the {mode}")


@contextlib.contextmanager
def stopped_failover(site: Site) -> Iterator[Any]:
    """A failover that stops, in seconds; it is aborted afterwards."""
    began = time.monotonic()
    run = begun(site, "failover")
    try:
        assert time.monotonic() - began < SECONDS_MAX, "it took as long as a launch"
        yield run
    finally:
        site.rest.ask("POST", f"/runs/{run['run']}/abort", {})
        until(lambda: site.rest.ask("GET", f"/runs/{run['run']}")["state"] == "finished", "its end")


def drilled(site: Site) -> Any:
    return begun(site, "drill")


# ---- the faults: each is planted for as long as the context is open


@contextlib.contextmanager
def gone(site: Site, name: str) -> Iterator[None]:
    """A party is killed."""
    site.kill(name)
    try:
        yield
    finally:
        site.start_party(name)


@contextlib.contextmanager
def told(site: Site, **changes: Any) -> Iterator[None]:
    """The runbook is another."""
    site.keep(site.book(**changes))
    try:
        yield
    finally:
        site.keep(site.book())


@contextlib.contextmanager
def removed(file: Path) -> Iterator[None]:
    aside = file.with_name(f"{file.name}.aside")
    file.rename(aside)
    try:
        yield
    finally:
        aside.rename(file)


@contextlib.contextmanager
def not_executable(program: Path) -> Iterator[None]:
    program.chmod(0o644)
    try:
        yield
    finally:
        program.chmod(0o755)


@contextlib.contextmanager
def another_program(site: Site, name: str, text: str) -> Iterator[None]:
    site.write_program(name, text)
    try:
        yield
    finally:
        site.write_program(name)


@contextlib.contextmanager
def certified(site: Site, folder: str, party: str, *hosts: str, **more: Any) -> Iterator[None]:
    """Another certificate lies in the place of a party's own."""
    own = site.folder / f"{folder}.own"
    shutil.copytree(site.tls / folder, own)
    site.issued(party, folder, *hosts, **more)
    try:
        yield
    finally:
        for file in own.iterdir():
            file.replace(site.tls / folder / file.name)
        own.rmdir()


@contextlib.contextmanager
def expired(site: Site) -> Iterator[None]:
    """The target's certificate is over, and nobody has renewed it. It was taken into use while it was good."""
    with certified(site, "outpost", "target/outpost", SERVICES, valid="8s"):
        site.cycle()
        until(
            lambda: (
                subprocess.run(
                    ["openssl", "x509", "-checkend", "0", "-noout", "-in", site.tls / "outpost/certificate.pem"],
                    capture_output=True,
                    check=False,
                ).returncode
            ),
            "its end",
        )
        yield


@contextlib.contextmanager
def shadowed(site: Site, module: str) -> Iterator[None]:
    """A library can't be loaded: one lies in its place that is broken."""
    (site.folder / "shadow" / f"{module}.py").write_text("raise ImportError('no pq wrapper available')\n")
    site.kill("orchestrator")
    site.start_party("orchestrator", first=str(site.folder / "shadow"))
    until(lambda: site.rest.ask("GET", "/health"), "the orchestrator")
    try:
        yield
    finally:
        site.kill("orchestrator")
        site.start_party("orchestrator")
        until(lambda: site.rest.ask("GET", "/health"), "the orchestrator")


@contextlib.contextmanager
def full(site: Site) -> Iterator[None]:
    """The store's disk is full."""
    ballast = site.folder / "store/ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 20)):
            pass
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def mounted(place: Path) -> Iterator[None]:
    """Something else is mounted where a disk would be."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


@contextlib.contextmanager
def refused(site: Site) -> Iterator[None]:
    """A firewall on the recovery host lets nothing reach the disks."""
    if IPTABLES is None:
        pytest.skip("iptables is not installed")
    rule = ["OUTPUT", "-p", "tcp", "--dport", "10809", "-j", "REJECT"]
    subprocess.run([*site.nets.inside("recovery"), IPTABLES, "-I", *rule], check=True)
    try:
        yield
    finally:
        subprocess.run([*site.nets.inside("recovery"), IPTABLES, "-D", *rule], check=True)


@contextlib.contextmanager
def paused(site: Site) -> Iterator[None]:
    """The agent ships nothing, and the source goes on."""
    site.say("source", "drengine_agent", "pause", "--config", "agent.toml", may_fail=True)
    site.write_disk()
    until(lambda: (site.write_disk(), "point-age:shop" in site.failing())[1], "a point that is too old")
    try:
        yield
    finally:
        site.say("source", "drengine_agent", "resume", "--config", "agent.toml", may_fail=True)


@contextlib.contextmanager
def drilled_in_vain(site: Site) -> Iterator[None]:
    """The last drill did not pass."""
    with another_program(site, "check", "exit 1"):
        assert drilled(site)["outcome"] == "failed"
    try:
        yield
    finally:
        assert drilled(site)["outcome"] == "completed"


LAUNCH = "sources__shop__launch"
ASK = [{"approval": {"prompt": "really?", "by": ["nobody-here"]}}]


@dataclass(frozen=True)
class Fault:
    """What is planted, and the check that finds it; `kind`: how a failover ends that is begun all the same."""

    plant: Plant
    id: str
    kind: str = NOT_READY.id
    warns: bool = False


FAULTS = {
    "the recovery host is off": Fault(lambda at: gone(at, "standby"), "host-connected:recovery-1"),
    "a host that nobody knows": Fault(
        lambda at: told(at, **{f"{LAUNCH}__host": "recovery-9"}), "host-connected:recovery-9"
    ),
    "a program is missing on the recovery host": Fault(
        lambda at: removed(at.program("start")), "host-programs:recovery-1/shop"
    ),
    "a program is not executable there": Fault(
        lambda at: not_executable(at.program("start")), "host-programs:recovery-1/shop"
    ),
    "a program of a step is missing": Fault(lambda at: removed(at.program("check")), "program:CHECK"),
    "a program of a step is not executable": Fault(lambda at: not_executable(at.program("check")), "program:CHECK"),
    "psycopg can't be loaded": Fault(lambda at: shadowed(at, "psycopg"), "library:psycopg"),
    "the target's certificate has expired": Fault(expired, "export-certificate:recovery-1"),
    "the target's certificate has another name": Fault(
        lambda at: certified(at, "outpost", "target/outpost", "10.81.0.99"), "export-certificate:recovery-1"
    ),
    "the target shows a certificate of another role": Fault(
        lambda at: certified(at, "outpost", "broker/broker", SERVICES), "export-certificate:recovery-1"
    ),
    "the host attaches with the certificate of an agent": Fault(
        lambda at: certified(at, "nbd", "agent/shop"), "host-certificate:recovery-1"
    ),
    "there is no fence command": Fault(lambda at: told(at, sources__shop__fence=None), "fence-command:shop", kind=""),
    "the fence does not answer": Fault(
        lambda at: another_program(at, "fence-dry", "exit 3"), "fence-dry:shop", kind=""
    ),
    "points are older than promised": Fault(paused, "point-age:shop", warns=True),
    "the last drill is too old": Fault(lambda at: told(at, objectives__drill="1s"), "drill", warns=True),
    "the last drill failed": Fault(drilled_in_vain, "drill", warns=True),
    "the store is full": Fault(full, "store-room"),
    "the broker is down": Fault(lambda at: gone(at, "broker"), "broker"),
    "nobody may approve": Fault(lambda at: told(at, **{"waves": asking(at)}), "approver:all.before.1"),
    "a secret is missing": Fault(lambda at: removed(at.folder / "secret"), "reference:file:SECRET"),
    "a firewall is between host and disks": Fault(refused, "export-reachable:recovery-1"),
    "the target is down": Fault(lambda at: gone(at, "target"), "export-reachable:recovery-1"),
    "another disk is mounted there": Fault(
        lambda at: both(told(at, **{f"{LAUNCH}__settings__mounts": mounts(at)}), mounted(at.at)),
        "host-places:recovery-1/shop",
    ),
    "the host's file does not allow it": Fault(
        lambda at: told(at, **{f"{LAUNCH}__settings__mounts": [{"volume": "data", "at": "/etc/shop"}]}),
        "host-allows:recovery-1/shop",
    ),
    "the source is silent": Fault(lambda at: gone(at, "agent"), "source-agent:shop", warns=True),
    "a source that nobody knows": Fault(lambda at: told(at, **unknown(at)), "source-known:shopp"),
}


def asking(at: Site) -> Any:
    return [{**at.book()["waves"][0], "before": ASK}]


def mounts(at: Site) -> Any:
    return [{"volume": "data", "at": str(at.at)}]


def unknown(at: Site) -> dict[str, Any]:
    book = at.book()
    return {
        "sources": {"shopp": book["sources"]["shop"]},
        "waves": [{**book["waves"][0], "sources": ["shopp"]}],
    }


@contextlib.contextmanager
def both(*plants: contextlib.AbstractContextManager[object]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for each in plants:
            stack.enter_context(each)
        yield


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_within_one_cycle_and_before_anything_is_fenced(at_work: Site, name: str) -> None:
    fault = FAULTS[name]
    wanted = fault.id.replace("CHECK", str(at_work.program("check"))).replace("SECRET", f"{at_work.folder}/secret")
    with fault.plant(at_work):
        found = at_work.cycle()
        failing = {each["id"]: each for each in found["checks"] if not each["ok"]}
        assert wanted in failing, sorted(failing)
        assert found["seconds"] < SECONDS_MAX
        assert found["ready"] is fault.warns
        assert failing[wanted]["hint"]
        if not fault.warns and fault.kind and "shopp" not in wanted:
            with stopped_failover(at_work) as run:
                steps = {each["id"]: each for each in run["steps"]}
                assert (run["state"], steps["preflight"]["code"]) == ("stopped", fault.kind)
                assert wanted in steps["preflight"]["message"]
                assert steps["fence:shop"]["status"] == "pending"
    assert not (at_work.folder / "fenced").exists()
    until(lambda: wanted not in at_work.failing(), "its mending is found, too")


def test_a_drill_with_an_absent_host_fails_in_seconds(at_work: Site) -> None:
    with gone(at_work, "standby"):
        began = time.monotonic()
        run = drilled(at_work)
        assert time.monotonic() - began < SECONDS_MAX
    assert (run["outcome"], run["steps"][1]["code"]) == ("failed", NOT_READY.id), run["steps"][1]
    until(lambda: at_work.failing() <= {"drill"}, "the host is back")
    assert drilled(at_work)["outcome"] == "completed"


def test_a_lost_source_that_nothing_can_fence_blocks_a_failover_before_anything_is_done(at_work: Site) -> None:
    with told(at_work, sources__shop__fence=None), gone(at_work, "agent"):
        until(lambda: "source-agent:shop" in at_work.failing(), "it is gone")
        with stopped_failover(at_work) as run:
            assert (run["outcome"], run["reason"]) == ("blocked", "source-unfenced")
            steps = {each["id"]: each for each in run["steps"]}
            assert (steps["preflight"]["code"], steps["fence:shop"]["status"]) == (UNFENCED.id, "pending")
    until(lambda: at_work.failing() == set(), "it is back")


def test_what_is_found_is_a_metric_and_a_page(at_work: Site) -> None:
    with removed(at_work.program("check")):
        at_work.failing()
        text = subprocess.run(
            [*at_work.nets.inside("outpost"), "curl", "-s", "http://127.0.0.1:9441/metrics"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        wanted = 'check="program",runbook="shop"'
        line = next(each for each in text.splitlines() if "check_passed" in each and "bin/check" in each)
        assert line.endswith(" 0.0") and 'check="program"' in line and 'severity="blocks"' in line, wanted
        assert 'drengine_orchestrator_ready{mode="failover",runbook="shop"} 0.0' in text
    until(lambda: at_work.failing() == set(), "it is mended")


def test_in_a_disaster_a_check_can_be_passed_by_and_the_audit_log_tells_who_did(at_work: Site) -> None:
    """Last: the source is lost, the fence's dry form does not answer, and somebody knows better."""
    at_work.kill("agent")
    with another_program(at_work, "fence-dry", "exit 1"):
        at_work.keep(at_work.book(waves=[{"name": "all", "sources": ["shop"]}]))
        stopped = begun(at_work, "failover")
        assert stopped["state"] == "stopped"
        assert not (at_work.folder / "fenced").exists()
        at_work.drengine("run", "resume", stopped["run"], "--despite", "fence-dry:shop", "-c", "orchestrator.toml")
    run = at_work.rest.ask("GET", f"/runs/{stopped['run']}")
    assert run["outcome"] == "completed", run
    assert run["fencing"] == {"shop": "command"}
    steps = {each["id"]: each for each in run["steps"]}
    passed = next(each for each in steps["preflight"]["data"]["checks"] if each["id"] == "fence-dry:shop")
    assert (passed["ok"], passed["despite"]) == (False, True)
    told = at_work.drengine("audit", "show", str(at_work.folder / "orchestrator"))
    assert [each for each in told if each["did"] == "run.resume" and "despite:fence-dry:shop" in str(each)]
