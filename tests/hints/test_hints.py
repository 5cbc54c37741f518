"""A hint leads somewhere that works: every command, option, file and setting that one names is there.

What a hint tells to type is typed in the situation that shows it, in test_situations.py; a new hint that names a
command needs an entry there, or here with the reason why it is not tried.
"""

from __future__ import annotations

import importlib
import re
import shutil

import pytest

from drengine.config.options import options_of
from drengine.model.errors import error_kinds
from drengine.model.states import REASONS
from tests.hints import test_situations
from tests.hints.words import COMMANDS, OPTIONS, ROOT, Hint, complaint, every_hint, written_commands
from tools.documents import import_everything

NOT_TRIED = {
    "`drengine --version`": "it is a comparison of two versions",
    "`drengine-agent --version`": "it is a comparison of two versions",
    "`drengine-agent run`": "the doctor's tests find no unit; `run` is every agent's test",
    "`drengine-agent run --config FILE`": "every agent's test runs it",
    "`drengine-agent doctor`": "tests/agent/doctor",
    "`drengine-agent adopt --volume NAME`": "tests/agent/daemon and tests/agent/capture adopt disks",
    "`drengine-agent adopt --volume {}`": "tests/agent/daemon and tests/agent/capture adopt disks",
    "`drengine-agent check-config`": "tests/cli",
    "`drengine-agent install`": "tests/agent/install",
    "`drengine-agent standby install`": "tests/agent/install",
    "`drengine export POINT --writable`": "tests/recovery/test_commands.py",
    "`drengine-agent release --force`": "tests/agent/failback",
    "`drengine failback RUNBOOK`": "tests/failover/engine",
    "`drengine target drain NAME`": "tests/target/test_shared.py: it needs a store that several targets share",
    "`drengine orchestrator run`": "tests/console/test_process.py; the other end of a network can't be reached here",
    "`drengine run show {}`": "tests/failover/engine",
    "`drengine abort {}`": "tests/failover/engine",
    "`drengine source add NAME`": "tests/fleet/test_processes.py",
    "`drengine fleet upgrade --resume`": "tests/fleet/test_processes.py",
    "`drengine fleet upgrade --status`": "tests/fleet/test_processes.py",
    "`drengine fleet upgrade --to VERSION`": "tests/fleet/test_processes.py",
    "`drengine ca serve --agent FILE`": "tests/enrolment/test_handout.py",
    "`drengine-agent upgrade`": "tests/agent/install",
    "`drengine target run`": "every target's test runs it",
    "`drengine ca issue host/NAME`": "tests/failover/preflight/test_faults.py",
    "`drengine ca issue target/NAME --host ADDRESS`": "tests/failover/preflight/test_faults.py",
    "`drengine drill RUNBOOK`": "tests/failover/engine",
    "`drengine orchestrator check-config FILE`": "tests/cli",
    "`drengine points --source SOURCE`": "tests/recovery/test_commands.py",
    "`drengine inventory SOURCE`": "tests/recovery/test_inventory.py",
    "`drengine-agent standby run`": "tests/failover/preflight/test_faults.py",
    "`drengine launch-policy ec2`": "tests/failover/drivers/ec2/test_permissions.py",
    "`drengine ca list`": "tests/identity/test_commands.py",
    "`drengine ca serve`": "tests/enrolment",
    "`drengine broker config`": "tests/enrolment/test_broker_config.py",
    "`drengine enrol --to {}`": "tests/enrolment",
    "`drengine token create --role broker`": "tests/enrolment",
    "`drengine store join DIRECTORY --catalogue URL`": "tests/store/shared",
}
"""Commands of hints that are not typed in the situation, and why that is enough."""
WORDS = {
    *("latest", "before:", "before:2026-11-23T10:00:00Z", "label:"),  # how points are named
    *("nbd", "scan", "ebpf", "standby", "frozen", "unlimited", "20MiB/s"),  # values of options
    "08:00-18:00=20MiB/s, otherwise unlimited",
    # keys of runbooks and of what belongs to them
    *("memory_mib", "portal", "addresses", "interfaces", "interface", "network", "network: bubble", "drill"),
    *("launch: {convert: never}", "disk_bus: sata", "firmware"),
    *("after", "by", "force_by", "host", "host:", "hydrate", "then", "modes", "mounts", "services", "start"),
    "[allow] commands",
    *("fence: {command: [...]}", "fence: {dry: [...]}", "objectives: rpo"),
    "fence: {homes: {HOST: {command: [...]}}}",
}


def settings() -> set[str]:
    """Names of all options of the configuration files."""
    found = set[str]()
    for module, name in (
        ("drengine.target.config", "TargetConfig"),
        ("drengine.failover.config", "OrchestratorConfig"),
        ("drengine_agent.config", "AgentConfig"),
        ("drengine_agent.standby.config", "StandbyConfig"),
    ):
        found |= _names(getattr(importlib.import_module(module), name), "")
    return found


def _names(cls: type, path: str) -> set[str]:
    found = set[str]()
    for name, each in options_of(cls).items():
        found |= {name, path + name}
        if each.nested is not None:
            found |= _names(each.nested, f"{path}{name}.")
    return found


@pytest.fixture(scope="module")
def hints() -> list[Hint]:
    return every_hint()


def test_every_kind_of_error_says_what_to_do(hints: list[Hint]) -> None:
    import_everything()
    kinds = error_kinds()
    assert len(kinds) > 90
    for kind in kinds:
        assert kind.hint.strip() and kind.hint.endswith("."), kind.id
        assert any(kind.hint == hint.text for hint in hints), f"the hint of {kind.id} is not found by the tests"


def test_what_a_hint_tells_to_type_can_be_typed(hints: list[Hint]) -> None:
    wrong = [(hint.place, " ".join(words), why) for hint in hints for words in hint.typed if (why := complaint(words))]
    assert wrong == []


def test_the_options_settings_and_tools_that_a_hint_names_are_there(hints: list[Hint]) -> None:
    assert len([hint for hint in hints if hint.quoted or hint.options]) > 100
    known = settings()
    unknown = [(hint.place, quoted) for hint in hints for quoted in hint.quoted if not is_there(quoted, known)]
    unknown += [
        (hint.place, option)
        for hint in hints
        for option in hint.options
        if option not in OPTIONS and not any(option in quoted for quoted in hint.quoted)
    ]
    assert unknown == []


def is_there(quoted: str, known: set[str]) -> bool:
    """Whether what stands between backticks is a word, a setting, an option or a tool that exists."""
    word, value = quoted.split(maxsplit=1)[0], quoted.partition(" = ")
    named = quoted in WORDS or value[0] in known or word in ("drengine", "drengine-agent", "ulimit") or word in OPTIONS
    return named or shutil.which(word) is not None


def test_the_pages_that_a_hint_names_are_there(hints: list[Hint]) -> None:
    texts = [hint.text for hint in hints] + [reason.hint for reason in REASONS.values()]
    for page in {page for text in texts for page in re.findall(r"docs/[\w.-]+\w", text)}:
        assert (ROOT / page).exists(), page


def test_every_command_that_a_hint_names_is_tried(hints: list[Hint]) -> None:
    told = {
        f"`{quoted}`" for hint in hints for quoted in hint.quoted if quoted.split()[0] in ("drengine", "drengine-agent")
    }
    tried = set(test_situations.TRIED)
    assert sorted(told - tried - NOT_TRIED.keys()) == [], "type it in test_situations.py"
    assert sorted((tried | NOT_TRIED.keys()) - told) == [], "no hint says so any more"


def test_commands_that_texts_and_documents_speak_of_exist() -> None:
    found = list(written_commands())
    assert len(found) > 200
    assert [(place, words, why) for place, words in found if (why := complaint(words, named=True))] == []


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("drengine run show RUN", ""),
        ("drengine export POINT --writable", ""),
        ("drengine approve RUN --note NOTE", ""),
        ("drengine reports", "no such command"),
        ("drengine run show", "needs RUN"),
        ("drengine run shows RUN", "no such command"),
        ("drengine points --jsn", "no option"),
        ("drengine status LATEST", "fewer arguments"),
    ],
)
def test_a_command_that_can_not_be_typed_is_found_out(line: str, why: str) -> None:
    assert why in complaint(line.split()) if why else not complaint(line.split())
    assert COMMANDS
