"""The AWS side: what its policies allow is what the code asks for, and its parts refer to each other.

The policies are evaluated by terraform itself, which needs no provider for them. The rest is formatted and its
references are followed; no registry can be reached here, so it was neither validated against the provider nor applied.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from drengine.control.messages import PartyKind
from drengine.control.topics import Leaf, Topic, everyone
from tests.deploy.compose import ROOT
from tools.aws_rights import ACTIONS, CLIENT, calls, rights

FOLDER = ROOT / "deploy" / "terraform"
VALUES = {
    "partition": "aws",
    "region": "eu-central-1",
    "account": "123456789012",
    "outpost": "op-01ac5d28a6a232904",
    "bucket": "replicas",
    "prefix": "site-1/",
    "site": "north",
}
needs_terraform = pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not installed")


def terraform(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["terraform", f"-chdir={folder}", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CHECKPOINT_DISABLE": "1", "TF_CLI_CONFIG_FILE": os.devnull},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The policies that terraform makes of VALUES."""
    place = tmp_path_factory.mktemp("terraform") / "policies"
    shutil.copytree(FOLDER / "policies", place)
    terraform(place, "init", "-input=false")
    terraform(place, "validate")
    terraform(
        place, "apply", "-auto-approve", "-input=false", *(f"-var={name}={value}" for name, value in VALUES.items())
    )
    found = {name: each["value"] for name, each in json.loads(terraform(place, "output", "-json")).items()}
    return {
        name: {role: json.loads(text) for role, text in value.items()} if isinstance(value, dict) else json.loads(value)
        for name, value in found.items()
    }


def allows(policy: dict[str, Any], action: str, resource: str, name: str = "") -> bool:
    """Whether a policy allows it to whoever's certificate has this name."""
    return any(
        action in each["Action"]
        and any(
            fnmatchcase(resource, known.replace("${iot:Certificate.Subject.CommonName}", name))
            for known in each["Resource"]
        )
        for each in policy["Statement"]
    )


def test_every_call_of_the_storage_has_its_action_and_the_file_says_so() -> None:
    asked = calls(CLIENT.read_text(encoding="utf-8"))
    assert asked == set(ACTIONS), "an action for a call that is not made, or the other way round"
    assert (FOLDER / "policies" / "rights.json").read_text(encoding="utf-8") == rights()
    with pytest.raises(KeyError):
        calls("self._s3.put_bucket_policy(Policy='{}')")


@needs_terraform
def test_a_target_may_do_what_the_storage_does_below_its_prefix_and_nothing_else(policies: dict[str, Any]) -> None:
    store, place = policies["store"], "arn:aws:s3-outposts:eu-central-1:123456789012:outpost/op-01ac5d28a6a232904"
    holders = [f"{place}/bucket/replicas", f"{place}/accesspoint/replicas"]
    allowed = {action for each in store["Statement"] for action in each["Action"]}
    assert allowed == {f"s3-outposts:{each}" for each in ACTIONS.values()}
    for holder in holders:
        assert allows(store, "s3-outposts:ListBucket", holder)
        for action in allowed - {"s3-outposts:ListBucket"}:
            assert allows(store, action, f"{holder}/object/site-1/segments/web/1")
            assert not allows(store, action, f"{holder}/object/site-2/segments/web/1")
            assert not allows(store, action, holder)
    assert not allows(store, "s3-outposts:ListBucket", f"{place}/bucket/other")
    listing = next(each for each in store["Statement"] if "s3-outposts:ListBucket" in each["Action"])
    assert listing["Condition"] == {"StringLike": {"s3-outposts:prefix": ["site-1/*"]}}


@needs_terraform
@pytest.mark.parametrize("kind", [PartyKind.AGENT, PartyKind.HOST])
def test_a_party_says_and_hears_its_own_topics_alone(policies: dict[str, Any], kind: PartyKind) -> None:
    policy, iot = policies["parties"][kind], "arn:aws:iot:eu-central-1:123456789012"
    says, hears = {Leaf.PRESENCE, Leaf.REPORT, Leaf.ANSWER}, {Leaf.PRESENCE, Leaf.REPORT, Leaf.COMMAND}
    for leaf in Leaf:
        own = Topic("north", kind, "web1", leaf)
        assert allows(policy, "iot:Publish", f"{iot}:topic/{own}", "web1") == (leaf in says)
        assert allows(policy, "iot:RetainPublish", f"{iot}:topic/{own}", "web1") == (leaf in says - {Leaf.ANSWER})
        assert allows(policy, "iot:Subscribe", f"{iot}:topicfilter/{own}", "web1") == (leaf in hears)
        assert allows(policy, "iot:Receive", f"{iot}:topic/{own}", "web1") == (leaf in hears)
        for other in (Topic("north", kind, "web2", leaf), Topic("south", kind, "web1", leaf)):
            for action in ("iot:Publish", "iot:RetainPublish", "iot:Receive"):
                assert not allows(policy, action, f"{iot}:topic/{other}", "web1")
        assert not allows(policy, "iot:Subscribe", f"{iot}:topicfilter/{everyone('north', leaf)}", "web1")
    assert allows(policy, "iot:Connect", f"{iot}:client/{kind}-web1-0a1b2c3d", "web1")
    assert not allows(policy, "iot:Connect", f"{iot}:client/{kind}-web2-0a1b2c3d", "web1")


@needs_terraform
def test_an_orchestrator_commands_its_site_and_hears_it(policies: dict[str, Any]) -> None:
    policy, iot = policies["orchestrator"], "arn:aws:iot:eu-central-1:123456789012"
    for leaf in Leaf:
        topic = Topic("north", PartyKind.AGENT, "web1", leaf)
        assert allows(policy, "iot:Publish", f"{iot}:topic/{topic}") == (leaf is Leaf.COMMAND)
        assert allows(policy, "iot:Receive", f"{iot}:topic/{topic}") == (leaf is not Leaf.COMMAND)
        assert allows(policy, "iot:Subscribe", f"{iot}:topicfilter/{everyone('north', leaf)}") == (
            leaf is not Leaf.COMMAND
        )
        south = Topic("south", PartyKind.AGENT, "web1", leaf)
        assert not any(allows(policy, f"iot:{each}", f"{iot}:topic/{south}") for each in ("Publish", "Receive"))
    assert allows(policy, "iot:RetainPublish", f"{iot}:topic/drengine/north/orchestrator/0a1b/presence")
    assert allows(policy, "iot:Connect", f"{iot}:client/orchestrator-0a1b")


def blocks(text: str, kind: str) -> Iterator[tuple[str, ...]]:
    for match in re.finditer(rf'^{kind} "([^"]+)"(?: "([^"]+)")? \{{', text, re.MULTILINE):
        yield tuple(each for each in match.groups() if each)


def test_whatever_is_referred_to_is_there_and_whatever_is_there_is_used() -> None:
    text = "\n".join(re.sub(r"#.*", "", path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.tf")))
    policies = (FOLDER / "policies" / "main.tf").read_text(encoding="utf-8")
    resources = {".".join(each) for each in blocks(text, "resource")}
    data = {".".join(each) for each in blocks(text, "data")}
    variables = {name for (name,) in blocks(text, "variable")}
    assert set(re.findall(r"(?<!data\.)\b(aws_\w+\.\w+)\.", text)) <= resources
    assert {f"{kind}.{name}" for kind, name in re.findall(r"data\.(aws_\w+)\.(\w+)\.", text)} == data
    assert set(re.findall(r"\bvar\.(\w+)", text)) == variables
    assert set(re.findall(r"module\.policies\.(\w+)", text)) == {name for (name,) in blocks(policies, "output")}
    given = re.search(r'module "policies" \{(.*?)\n\}', text, re.DOTALL)
    assert given
    assert set(re.findall(r"^  (\w+)\s+=", given[1], re.MULTILINE)) - {"source"} == set(VALUES)
    assert (
        {name for (name,) in blocks(policies, "variable")} == set(VALUES) == set(re.findall(r"\bvar\.(\w+)", policies))
    )
    assert set(re.findall(r"\blocal\.(\w+)", policies)) == {
        "rights",
        "outposts",
        "holders",
        "iot",
        "topics",
        "own_name",
    }


@needs_terraform
def test_it_is_formatted_as_terraform_does() -> None:
    terraform(FOLDER, "fmt", "-check", "-recursive")
