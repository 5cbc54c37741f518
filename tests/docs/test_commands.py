"""Every command in README and docs/ is typed as it stands there, page after page, on one machine that is thrown away.

What can't be typed here is listed with the reason, and with the test that does it in another way where there is one.
"""

from __future__ import annotations

import json
import re
import signal
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.docs.machine import HOME, Machine, why_not
from tests.docs.pages import GENERATED, PAGES, ROOT, Typed, commands, files

STORE = "/var/lib/drengine/store"
NBD = "/run/drengine/nbd.sock"
TAP = "/run/drengine-agent/tap.sock"
AGENT_FILE = "/etc/drengine-agent.toml"

NOT_TYPED: dict[str, str] = {
    r"README.md: make (demo|test)( |$)": "continuous integration types them; the demo has tests of its own",
    r"docs/benchmarks.md: make bench": "takes half an hour and 20 GiB",
    r"docs/site.md: ": "typed on four hosts, from packages: tests/packages/test_site_page.py",
    r".*: (python3 -m venv|/opt/drengine/bin/pip) ": "installs from the package registry",
    r".*: systemctl ": "there is no systemd on this machine; tests/agent/install starts one",
    r".*: (sudo )?\./drengine-agent (doctor|install) ": "wants a spare disk and systemd: tests/agent/install",
    r"README.md: drengine-agent status$": "asks an installed agent: tests/agent/install",
    r"docs/install.md: drengine join-command ": "wants an authority and servers: tests/agent/install/test_joining.py",
    r"docs/install.md: drengine-agent status$": "asks an installed agent: tests/agent/install",
    r"docs/operations.md: drengine fleet upgrade ": "wants agents that were installed: tests/fleet/test_upgrade.py",
    r"docs/operations.md: drengine-agent (doctor|status)$": "asks an installed agent: tests/agent/install",
    r"docs/failback.md: drengine \w+ .*--onto": "wants a lost host: tests/failover/engine/test_new_home.py",
    r"docs/failback.md: drengine (token|points|grant) ": "wants an empty machine: tests/system/test_live_restore.py",
    r"docs/failback.md: drengine-agent (enrol|restore) ": "wants an empty machine: tests/system/test_live_restore.py",
    r"docs/failback.md: drengine-agent adopt ": "wants a disk that was replaced: tests/agent/daemon/test_adopt.py",
    r"docs/conversion.md: drengine convert ": "wants a disk with a system: tests/conversion",
    r"docs/control.md: apt-get install ": "installs from the distribution",
    r"docs/control.md: drengine (token|enrol|broker) ": "Debian's Mosquitto: tests/enrolment/test_broker_config.py",
    r"docs/operations.md: (touch /run/disk; nbdfuse|mount )": "attaches a loop device: tests/field and tests/nbd",
    r"docs/operations.md: drengine store (create|join) ": "wants PostgreSQL: tests/store/shared/test_commands.py",
    r"docs/operations.md: drengine store (check|place) ": "wants a bucket: tests/s3/test_refused.py",
    r"docs/operations.md: drengine (rebuild|mirror) .*s3://": "wants a bucket: tests/s3/test_store.py, tests/s3",
    r"docs/drivers.md: drengine-agent standby run ": "wants root and a broker: tests/agent/standby",
    r"docs/install.md: podman ": "wants a container image: tests/packages/test_image.py",
    r"docs/install.md: (drengine token|\./drengine-agent standby) ": "wants systemd: tests/packages, tests/agent",
}
SERVING = {
    "drengine target run": "7440",
    "drengine broker run": "1883",
    "drengine-agent run": TAP,
    "drengine orchestrator run": "7443",
}
"""Commands that stay, and where each listens once it works."""


@dataclass
class Story:
    """One machine, and what a reader would fill in on the way."""

    machine: Machine
    typed: int = 0

    def points(self) -> list[str]:
        """Ids of all points, oldest first."""
        return [each["id"] for each in json.loads(self.must(f"drengine points --store {STORE} --json"))]

    def branch(self) -> int:
        """The newest branch that may be written."""
        found = json.loads(self.must(f"drengine branches --store {STORE} --json"))
        return max(each["number"] for each in found if not each["closed"])

    def run(self) -> str:
        """The newest run's id."""
        return str(json.loads(self.must("drengine runs --json"))[0]["run"])

    def must(self, text: str, *codes: int) -> str:
        """Type it; it ends with 0, or as is expected."""
        done = self.machine.run(text)
        assert done.returncode in (codes or (0,)), f"{text}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        self.typed += 1
        return done.stdout

    def serve(self, text: str, where: str) -> None:
        """Type it and leave it running once it serves."""
        process = self.machine.start(text)

        def ready() -> bool:
            assert process.poll() is None, f"{text}: {self.machine.said(process)}"
            return self.machine.listens(where)

        self.machine.until(text, ready)
        self.typed += 1

    def stop(self, program: str) -> None:
        """End what was left running, as Ctrl-C would."""
        self.machine.stop(program)


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    if reason := why_not():
        pytest.skip(reason)
    with Machine() as machine:
        yield Story(machine)


def test_every_command_is_typed_or_says_why_not() -> None:
    """A page with a command that no chapter below types fails here."""
    missing = [
        str(command)
        for page in PAGES
        if page not in GENERATED | CHAPTERS.keys()
        for command in commands(page)
        if not not_typed(command)
    ]
    assert not missing


def test_no_reason_is_left_over() -> None:
    found = [f"{command.page}: {command.text}" for page in PAGES for command in commands(page)]
    assert [pattern for pattern in NOT_TYPED if not any(re.match(pattern, each) for each in found)] == []


def not_typed(command: Typed) -> bool:
    return any(re.match(pattern, f"{command.page}: {command.text}") for pattern in NOT_TYPED)


@pytest.mark.timeout(600)
def test_the_documents_are_typed_from_top_to_bottom(story: Story) -> None:
    for page, chapter in CHAPTERS.items():
        left = [command for command in commands(page) if not not_typed(command)]
        for command in left:
            try:
                chapter(story, command)
            except AssertionError as error:
                raise AssertionError(f"{command}\n{error}") from error
    assert story.typed > 60


def readme(story: Story, command: Typed) -> None:
    """From nothing to a failback, in the order of the page."""
    machine, text = story.machine, command.text
    if text.startswith("drengine-agent protect"):
        story.must("mkdir -p /var/lib/disks; truncate -s 16M /var/lib/disks/data.img")
    if text.startswith("drengine points"):
        story.machine.until("a first point", story.points)
    if text.startswith("drengine restore"):
        story.must("mkdir /recovery")
    if text.startswith("drengine runbook validate"):
        machine.write("/usr/local/bin/start-shop", "#!/bin/sh\nexec sleep 600\n", mode=0o755)
        machine.write("/usr/local/bin/check-shop", "#!/bin/sh\nexit 0\n", mode=0o755)
        fill_in(story)
    if text.startswith("drengine plan"):
        # What the page says in words: the agent joins, and the orchestrator has its file.
        story.stop("drengine-agent run")
        machine.write(AGENT_FILE, machine.read(AGENT_FILE) + '\n[control]\naddress = "127.0.0.1:1883"\n')
        story.serve(f"drengine-agent run --config {AGENT_FILE}", TAP)
        (orchestrator,) = [content for content in files("README.md") if "[broker]" in content]
        machine.write("orchestrator.toml", orchestrator)
        machine.write(".environment", f"export DRENGINE_CONFIG={HOME}/orchestrator.toml\n")
    type_it(story, command)


def fill_in(story: Story) -> None:
    """What a person fills in of a first runbook: a fence, and what starts the workload at home again."""
    book = story.machine.read("shop.yaml")
    filled = '    fence: {command: ["true"], dry: ["true"]}\n    start: ["true"]\n    launch:'
    if filled not in book:
        story.machine.write("shop.yaml", book.replace("    launch:", filled, 1))


def operations(story: Story, command: Typed) -> None:
    """On the site that README has made; stores are made anew elsewhere."""
    text = command.text
    if "target init" in text or "target run" in text:
        new = "/var/lib/second/store" if "--store" in text else ""
        story.must("mkdir -p /etc/drengine")
        changed = text.replace(STORE, new).replace("7440", "7540").replace(NBD, "/run/drengine/second.sock")
        if "target run" in text:
            return story.serve(changed, "7540")
        if not new:
            changed += " --store /var/lib/third/store"
        story.must(changed)
        return None
    story.machine.write(".environment", f"export DRENGINE_CONFIG={HOME}/orchestrator.toml DRENGINE_STORE={STORE}\n")
    if text.startswith("drengine-agent check-config"):
        story.must(f"cp {AGENT_FILE} /etc/drengine/agent.toml")
    if text.startswith("drengine restore latest"):
        story.must("mkdir -p /srv/restored")
    if "registry.sqlite" in text:
        story.must("mkdir -p /srv/backup")
        state = json.loads(story.must("drengine reports list --json"))
        assert state is not None
    if text.startswith("drengine fleet retire"):
        story.must("drengine ca init --ca ca --site main; drengine source add old-shop")
    if text.startswith("export DRENGINE_CONFIG"):
        return None  # README's file is the one that is used
    type_it(story, command)
    return None


def type_it(story: Story, command: Typed) -> None:
    """Fill in what the page leaves open, type it, and leave running what serves."""
    text = command.text
    text = re.sub(r"\bRUN\b", lambda _: story.run(), text)
    text = re.sub(r"\b1-5120\b", lambda _: story.points()[-1], text)
    text = re.sub(r"--(branch|drop) 2\b", lambda match: f"--{match[1]} {story.branch()}", text)
    text = text.replace("2026-11-23T10:00:00Z", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    for program, where in SERVING.items():
        if text.startswith(program):
            return story.serve(text, where)
    if text.startswith("drengine export"):
        return export(story, text)
    story.must(text, *EXPECTED.get(text.split(" --")[0], ()))
    return None


def export(story: Story, text: str) -> None:
    """It prints an address, serves it, and ends with Ctrl-C."""
    process = story.machine.start(text)

    def printed() -> list[str]:
        assert process.poll() is None, f"{text}: {story.machine.said(process)}"
        return re.findall(r"nbd\+unix://\S+", story.machine.said(process))

    story.machine.until(text, printed)
    story.must(f"nbdinfo --size '{printed()[0]}'")
    assert story.machine.end(process, signal.SIGINT) == 0
    story.typed += 1


def runbooks(story: Story, command: Typed) -> None:
    """Another runbook of the same name: the one that README has run is kept."""
    if command.text.startswith("drengine ready"):
        fill_in(story)
    type_it(story, command)


def failover(story: Story, command: Typed) -> None:
    """All modes once; what waits is made to wait first."""
    if command.text.startswith(("drengine approve", "drengine abort")):
        book = story.machine.read("shop.yaml")
        waiting = book.replace("    # before:", '    before:\n      - approval: {prompt: "Go on?"}\n    # before:', 1)
        story.machine.write("waiting.yaml", waiting.replace("name: shop", "name: waiting", 1))
        add = "drengine user add deputy --role approver --no-password"
        story.must(f"drengine user list | grep -q deputy || {add}")  # nobody begins what nobody may approve
        story.must("drengine drill waiting.yaml --no-wait", 108)
    if command.text.startswith("drengine approve"):
        token = story.must("drengine user token create deputy").strip()
        story.must(f"DRENGINE_TOKEN={token} {command.text.replace('RUN', story.run())}")
        story.must(f"drengine run resume {story.run()}", 0, 110)
        return None
    if command.text.startswith("drengine run resume"):
        return None  # typed after the approval, below
    type_it(story, command)
    return None


def rest(story: Story, command: Typed) -> None:
    """The orchestrator serves; `curl` fails on an answer that is an error."""
    if not story.machine.listens("7443"):
        story.stop("drengine broker run")
        story.serve("drengine orchestrator run", "7443")
    story.must(command.text.replace("curl -s", "curl -sf"))


def agent(story: Story, command: Typed) -> None:
    """A second agent beside the first one, for a source of its own."""
    text = command.text.replace("--source shop", "--source agent-page")
    if text.startswith("drengine-agent protect"):
        story.must("truncate -s 8M /var/lib/disks/second.img")
        text = text.replace("data.img", "second.img") + " --listen unix:/run/drengine-agent/second.sock"
        story.must(text)
        file = story.machine.read("agent.toml")
        story.machine.write("agent.toml", f'state_directory = "/var/lib/second-agent"\n{file}')
        return None
    if text.startswith("drengine-agent run"):
        return story.serve(text, "/run/drengine-agent/second.sock")
    if text.startswith("drengine-agent cut"):
        story.machine.until("it replicates", lambda: "CONTINUOUS" in story.must(text.replace(" cut", " status"), 0, 83))
    story.must(text)
    return None


def drivers(story: Story, command: Typed) -> None:
    """Configuration files of services."""
    story.must("mkdir -p /etc/drengine")
    type_it(story, command)


def security(story: Story, command: Typed) -> None:
    """On a machine that keeps the CA; a host's folder stands for the host."""
    text = command.text
    if text.startswith(("drengine grant", "drengine lock", "drengine points")):
        story.machine.write(".environment", f"export DRENGINE_STORE={STORE}\n")
        story.must(text)
        return None
    story.must("mkdir -p /root/ca-host")
    story.machine.write(".environment", "cd /root/ca-host\n")
    if text.startswith("drengine ca serve"):
        story.must("echo 127.0.0.1 authority.example >> /etc/hosts")
        return story.serve(text, "7444")
    if text.startswith("drengine token create"):
        story.machine.write("/root/token", story.must(text))
        return None
    if " enrol " in text:
        text = text.replace("TOKEN", story.machine.read("/root/token").strip())
    story.must(text)
    return None


EXPECTED: dict[str, tuple[int, ...]] = {}


CHAPTERS: dict[str, Callable[[Story, Typed], None]] = {
    "README.md": readme,
    "docs/operations.md": operations,
    "docs/runbooks.md": runbooks,
    "docs/failover.md": failover,
    "docs/rest.md": rest,
    "docs/agent.md": agent,
    "docs/drivers.md": drivers,
    "docs/install.md": drivers,
    "docs/outpost.md": type_it,
    "docs/security.md": security,
}


@pytest.mark.parametrize("page", PAGES)
def test_configuration_in_a_page_is_read_by_its_program(page: str) -> None:
    """TOML in the documents is TOML, and its sections and keys are options that exist."""
    known = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    for content in files(page):
        for section, value in tomllib.loads(content).items():
            names = [f"{section}.{key}" for key in value] if isinstance(value, dict) else [section]
            strange = [name for name in names if f"| `{name}` |" not in known]
            assert not strange or page == "docs/cuts.md", f"{page}: {strange}"
