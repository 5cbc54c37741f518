"""The driver's IAM policy and its calls are held to each other: each call is allowed, each permission is used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drengine.cli.main import app
from drengine.failover.drivers.ec2.calls import OPERATIONS
from drengine.failover.drivers.ec2.permissions import RIGHTS, policy
from drengine.terminal import main
from tests.failover.drivers.ec2.iam import Resource, allowed, resources_of
from tests.failover.drivers.ec2.site import Network, driver, network, request
from tests.failover.drivers.ec2.standin import ACCOUNT, REGION, Request, running

POOL = "ipv4pool-coip-0123456789abcdef0"
SIZE_MAX = 6144
"""Characters of a managed policy, white space not counted."""


@pytest.fixture(scope="module")
def site() -> Iterator[Network]:
    with running() as cloud:
        yield network(cloud)


def test_each_call_is_allowed_and_each_permission_is_used(site: Network, tmp_path: Path) -> None:
    document, used, called = policy(region=REGION, account=ACCOUNT), set[str](), set[str]()
    denied: list[str] = []

    def judge(made: Request, after: bool) -> None:
        if not after and judging:
            called.add(made.action)
            try:
                used.update(allowed(document, made, resources_of(made, site.cloud)))
            except AssertionError as error:
                denied.append(str(error))

    lent = site.cloud.client().allocate_address(Domain="vpc")["AllocationId"]
    tag = [{"Key": "drengine:managed", "Value": "site"}]
    site.cloud.client().create_tags(Resources=[lent], Tags=tag)
    key = site.cloud.client().create_key_pair(KeyName="ops")["KeyName"]
    judging = True
    site.cloud.watch = judge
    everything = site.settings(
        elastic_address=POOL, user_data="x", drill_from=["10.0.1.0/24"], key_name=key, instance_types=[]
    )
    whole = request(tmp_path / "whole", everything)
    driver().launch(whole, lambda _: None)
    driver().quiesce(whole)
    driver().launch(whole, lambda _: None)
    driver().stop(whole)
    drill = request(tmp_path / "drill", everything, isolated=True)
    driver().launch(drill, lambda _: None)
    driver().ask_cloud(drill)
    driver().stop(drill)
    data = {"ImageId": site.image}
    judging = False
    site.cloud.client().create_launch_template(LaunchTemplateName="shop", LaunchTemplateData=data)
    judging = True
    borrows = request(tmp_path / "lent", site.settings(elastic_address=lent, image="", launch_template="shop"))
    driver().launch(borrows, lambda _: None)
    # An interface that outlived its instance: EC2 may leave one, moto never does.
    judging = False
    ours = [{"Key": "drengine:managed", "Value": "true"}, {"Key": "drengine:instance", "Value": borrows.instance}]
    left = site.cloud.client().create_network_interface(SubnetId=site.subnets[0])["NetworkInterface"]
    site.cloud.client().create_tags(Resources=[left["NetworkInterfaceId"]], Tags=ours)
    judging = True
    driver().stop(borrows)
    assert denied == []
    assert called == set(OPERATIONS), f"never called: {set(OPERATIONS) - called}"
    statements = {each["Sid"] for each in document["Statement"]}
    # moto makes what it tags in one call, as EC2 does, but EC2 asks for the right to tag as well.
    assert used == statements - {"DrengineTagWhatIsMade"}, f"never used: {statements - used}"


def test_what_tags_in_the_call_that_makes_it_may_tag(site: Network, tmp_path: Path) -> None:
    """EC2 asks for ec2:CreateTags too, with the call as ec2:CreateAction, for each kind that a call gives tags."""
    site.cloud.watch = None
    site.cloud.requests.clear()
    for isolated in (False, True):
        wanted = request(tmp_path / str(isolated), site.settings(elastic_address=POOL), isolated=isolated)
        driver().launch(wanted, lambda _: None)
        driver().stop(wanted)
    given = [
        (each.action, value)
        for each in site.cloud.requests
        for key, value in each.fields.items()
        if key.startswith("TagSpecification.") and key.endswith(".ResourceType")
    ]
    assert len(set(given)) == 6
    for action, kind in set(given):
        call = Request("CreateTags", {})
        assert "DrengineTagWhatIsMade" in allowed(policy(), call, [Resource(kind, {}, {}, creates=action)])


@pytest.mark.parametrize(
    ("action", "resources"),
    [
        ("TerminateInstances", [Resource("instance", {}, {})]),
        ("TerminateInstances", [Resource("instance", {"drengine:host": "helper-1"}, {})]),
        ("StopInstances", [Resource("instance", {"drengine:managed": "site"}, {})]),
        ("DeleteVolume", [Resource("volume", {"drengine:instance": "x"}, {})]),
        ("AttachVolume", [Resource("volume", {"drengine:managed": "true"}, {}), Resource("instance", {}, {})]),
        ("AttachVolume", [Resource("volume", {}, {}), Resource("instance", {"drengine:managed": "true"}, {})]),
        ("ReleaseAddress", [Resource("elastic-ip", {"drengine:managed": "site"}, {})]),
        ("DeleteSecurityGroup", [Resource("security-group", {}, {})]),
        ("CreateVolume", [Resource("volume", {}, {"team": "shop"})]),
        ("CreateTags", [Resource("volume", {}, {"drengine:managed": "true"})]),
        ("CreateTags", [Resource("volume", {"drengine:managed": "true"}, {"drengine:managed": "x"})]),
        ("CreateTags", [Resource("instance", {"drengine:managed": "true"}, {"drengine:state": "x"})]),
        ("CreateSnapshot", [Resource("volume", {"drengine:managed": "true"}, {})]),
    ],
)
def test_what_is_not_the_drivers_is_out_of_its_reach(action: str, resources: list[Resource]) -> None:
    with pytest.raises(AssertionError, match="is not allowed"):
        allowed(policy(), Request(action, {}), resources)


def test_every_call_has_a_right_and_every_right_a_call() -> None:
    named = {operation for right in RIGHTS for operation in right.operations}
    assert named == set(OPERATIONS)


def test_it_fits_into_a_managed_policy() -> None:
    document = policy(region=REGION, account=ACCOUNT, roles=["arn:aws:iam::123456789012:role/shop"], keys=["k" * 80])
    assert len(json.dumps(document).replace(" ", "")) <= SIZE_MAX


def test_it_is_printed_and_published(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(app, ["launch-policy", "ec2"]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert printed == policy()
    assert printed == json.loads((Path(__file__).parents[4] / "docs" / "iam-ec2.json").read_text())
    role = "arn:aws:iam::123456789012:role/shop"
    assert main(app, ["launch-policy", "ec2", "--role", role, "--region", REGION, "--account", ACCOUNT]) == 0
    narrowed = json.loads(capsys.readouterr().out)["Statement"]
    assert narrowed[-1]["Action"] == ["iam:PassRole"]
    assert narrowed[-1]["Resource"] == [role]
    assert f"arn:aws:ec2:{REGION}:{ACCOUNT}:volume/*" in narrowed[1]["Resource"]


@pytest.mark.parametrize("words", [["qemu"], ["ec2", "--account", "me"], ["ec2", "--role", "shop"]])
def test_what_makes_no_policy_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(app, ["launch-policy", *words]) == 2
    assert "Traceback" not in capsys.readouterr().err
