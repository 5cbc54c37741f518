"""The `ec2` driver keeps the contract, asks EC2 for what it should, and says what is wrong."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drengine.control.messages import Verb
from drengine.failover.drivers.contract import LaunchDriverContract
from drengine.failover.drivers.driver import Disk, LaunchDriver, LaunchRequest
from drengine.failover.drivers.ec2 import calls as calls_module
from drengine.failover.drivers.ec2.driver import Ec2Driver
from drengine.failover.drivers.ec2.errors import EC2_AWAY, EC2_CAPACITY, EC2_DENIED, EC2_QUOTA, EC2_SETUP
from drengine.failover.drivers.errors import LAUNCH_FAILED, LAUNCH_SETTINGS
from drengine.model.errors import DrengineError, ErrorKind
from drengine.model.hardware import Machine
from tests.failover.drivers.ec2.site import GIB, HOST, Helper, Network, Time, card, driver, inventory, network, request
from tests.failover.drivers.ec2.standin import OTHER_OUTPOST, OUTPOST, ZONE, Request, running

KEY = "arn:aws:kms:eu-central-1:123456789012:key/1234"


@pytest.fixture(scope="module")
def built() -> Iterator[Network]:
    """One stand-in for all tests: each leaves nothing, or what it leaves is not the next one's."""
    with running() as cloud:
        yield network(cloud)


@pytest.fixture
def site(built: Network) -> Network:
    return built.afresh()


def quiet(_: str) -> None:
    pass


def launched(wanted: LaunchRequest, time: Time | None = None) -> dict[str, Any]:
    found = driver(time).launch(wanted, quiet)
    assert found.running
    assert found.healthy
    return dict(found.details)


def refused(wanted: LaunchRequest, time: Time | None = None) -> DrengineError:
    with pytest.raises(DrengineError) as caught:
        driver(time).launch(wanted, quiet)
    return caught.value


class TestContract(LaunchDriverContract):
    @pytest.fixture(autouse=True)
    def _site(self, site: Network) -> None:
        self.site = site

    def driver(self) -> LaunchDriver:
        return driver()

    def request(self, directory: Path) -> LaunchRequest:
        return request(directory, self.site.settings())

    def failing(self, directory: Path) -> LaunchRequest:
        settings = self.site.settings(health=[sys.executable, "-c", "raise SystemExit('no answer')"])
        return replace(request(directory, settings), timeout_seconds=7.0)


def test_each_request_says_what_the_runbook_says(site: Network, tmp_path: Path) -> None:
    wanted = request(
        tmp_path / "i",
        site.settings(
            kms_key=KEY,
            key_name="",
            tags={"team": "shop"},
            user_data="#!/bin/sh\n",
            volumes={"data": {"size_gib": 10}},
        ),
        cards=(card("10.0.1.77"),),
    )
    details = launched(wanted)
    run = one(site, "RunInstances")
    assert run.fields["ImageId"] == site.image
    assert run.fields["InstanceType"] == "m5.large"
    assert (run.fields["MinCount"], run.fields["MaxCount"]) == ("1", "1")
    assert run.fields["InstanceInitiatedShutdownBehavior"] == "stop"
    assert len(run.fields["ClientToken"]) == 32
    assert run.fields["NetworkInterface.1.SubnetId"] == site.subnets[0]
    assert run.fields["NetworkInterface.1.PrivateIpAddress"] == "10.0.1.77"
    assert run.fields["NetworkInterface.1.SecurityGroupId.1"] == site.group
    assert run.fields["NetworkInterface.1.DeleteOnTermination"] == "true"
    assert run.fields["BlockDeviceMapping.1.DeviceName"] == "/dev/sda1"
    assert run.fields["BlockDeviceMapping.1.Ebs.VolumeType"] == "gp2"
    assert run.fields["BlockDeviceMapping.1.Ebs.KmsKeyId"] == KEY
    assert "UserData" not in run.fields, "the small image would run what is meant for the recovered guest"
    ours = {
        "drengine:managed": "true",
        "drengine:instance": wanted.instance,
        "drengine:run": "run-1",
        "drengine:source": "shop",
        "team": "shop",
    }
    for kind, role in (("instance", "workload"), ("volume", "boot"), ("network-interface", "workload")):
        assert run.tags(kind).items() >= (ours | {"drengine:role": role}).items()
    made = {each.tags("volume")["drengine:role"]: each for each in site.cloud.of("CreateVolume")}
    for volume, size in (("data", "10"), ("root", "3")):  # 2 GiB and a byte are rounded up
        each = made[f"disk/{volume}"]
        assert each.fields["OutpostArn"] == OUTPOST
        assert each.fields["AvailabilityZone"] == ZONE
        assert (each.fields["Size"], each.fields["VolumeType"]) == (size, "gp2")
        assert (each.fields["Encrypted"], each.fields["KmsKeyId"]) == ("true", KEY)
        assert each.tags("volume").items() >= (ours | {"drengine:state": "empty"}).items()
        assert each.fields["ClientToken"] not in {run.fields["ClientToken"], ""}
    attached = [
        (each.fields["InstanceId"], each.fields["VolumeId"], each.fields["Device"])
        for each in site.cloud.of("AttachVolume")
    ]
    id, volumes = details["instance_id"], details["volumes"]
    assert attached == [
        (site.helper, volumes["data"], "/dev/sdf"),
        (site.helper, volumes["root"], "/dev/sdg"),
        (id, volumes["root"], "/dev/sda1"),
        (id, volumes["data"], "/dev/sdf"),
    ]
    modified = one(site, "ModifyInstanceAttribute")
    assert modified.fields["UserData.Value"] == "IyEvYmluL3NoCg=="
    assert details["private_address"] == "10.0.1.77"
    driver().stop(wanted)
    assert site.left() == []


def one(site: Network, action: str) -> Request:
    (found,) = site.cloud.of(action)
    return found


def test_the_helper_is_told_what_to_fill_before_the_instance_has_it(site: Network, tmp_path: Path) -> None:
    helper = Helper()
    seen: list[tuple[list[str], int]] = []

    def look() -> None:
        there = site.cloud.client().describe_instances(InstanceIds=[site.helper])["Reservations"][0]["Instances"][0]
        attached = [each["Ebs"]["VolumeId"] for each in there["BlockDeviceMappings"]]
        seen.append((attached, len(site.cloud.of("StopInstances"))))

    helper.at = look
    details = launched(request(tmp_path / "i", site.settings(), helper))
    ((verb, order),) = helper.orders
    assert verb is Verb.HYDRATE
    assert order["direction"] == "fill"
    volumes = details["volumes"]
    assert order["disks"] == {
        "data": {
            "uri": "nbd://10.0.1.9/shop/data%232",
            "serial": volumes["data"].replace("-", ""),
            "size_bytes": 3 * GIB,
        },
        "root": {"uri": "nbd://x/root", "serial": volumes["root"].replace("-", ""), "size_bytes": 2 * GIB + 1},
    }
    ((attached, stopped),) = seen
    assert set(attached) >= set(volumes.values())
    assert stopped == 0, "an instance that is stopped has given up its place on the Outpost"


def test_what_was_written_is_brought_back_onto_the_branches(site: Network, tmp_path: Path) -> None:
    helper = Helper()
    wanted = request(tmp_path / "i", site.settings(), helper)
    details = launched(wanted)
    launched(wanted)
    assert [order["direction"] for _, order in helper.orders] == ["fill"], "its own writes would have been lost"
    driver().quiesce(wanted)
    driver().quiesce(wanted)
    assert [order["direction"] for _, order in helper.orders] == ["fill", "return"]
    assert not driver().inspect(wanted).running
    again = launched(wanted)
    assert [order["direction"] for _, order in helper.orders] == ["fill", "return", "fill"]
    assert (again["instance_id"], again["volumes"]) == (details["instance_id"], details["volumes"])
    driver().stop(wanted)
    assert site.left() == []


def test_a_drill_is_apart_and_gone(site: Network, tmp_path: Path) -> None:
    settings = site.settings(
        instance_profile="shop",
        elastic_address="ipv4pool-coip-0123456789abcdef0",
        lni_index=1,
        drill_from=["10.0.1.0/24"],
    )
    wanted = request(tmp_path / "i", settings, isolated=True)
    details = launched(wanted)
    run = one(site, "RunInstances")
    group = one(site, "CreateSecurityGroup")
    assert group.fields["GroupName"] == f"drengine-{wanted.instance}"
    assert group.tags("security-group")["drengine:instance"] == wanted.instance
    assert one(site, "RevokeSecurityGroupEgress").fields["IpPermissions.1.IpRanges.1.CidrIp"] == "0.0.0.0/0"
    allowed = one(site, "AuthorizeSecurityGroupIngress")
    assert allowed.fields["IpPermissions.1.IpRanges.1.CidrIp"] == "10.0.1.0/24"
    order = [each.action for each in site.cloud.requests]
    assert order.index("RevokeSecurityGroupEgress") < order.index("RunInstances"), "it could get out for a while"
    assert run.fields["NetworkInterface.1.SubnetId"] == site.drill_subnet
    assert run.fields["NetworkInterface.1.SecurityGroupId.1"] == allowed.fields["GroupId"] != site.group
    assert not [key for key in run.fields if key.startswith(("NetworkInterface.2", "IamInstanceProfile"))]
    assert not site.cloud.of("AllocateAddress", "AssociateAddress")
    assert details["subnet"] == site.drill_subnet
    driver().stop(wanted)
    assert site.left() == []


def test_a_customer_owned_address_of_a_pool_goes_with_the_instance(site: Network, tmp_path: Path) -> None:
    pool = "ipv4pool-coip-0123456789abcdef0"
    wanted = request(tmp_path / "i", site.settings(elastic_address=pool))
    details = launched(wanted)
    allocated = one(site, "AllocateAddress")
    assert allocated.fields["CustomerOwnedIpv4Pool"] == pool
    assert allocated.tags("elastic-ip")["drengine:instance"] == wanted.instance
    associated = one(site, "AssociateAddress")
    assert associated.fields["NetworkInterfaceId"].startswith("eni-")
    assert details["elastic_address"] == details["address"] != details["private_address"]
    launched(wanted)
    assert len(site.cloud.of("AllocateAddress", "AssociateAddress")) == 2, "it was done twice"
    driver().stop(wanted)
    assert site.left() == []


def test_an_address_of_the_site_is_associated_and_stays(site: Network, tmp_path: Path) -> None:
    given = site.cloud.client().allocate_address(Domain="vpc")["AllocationId"]
    before = site.cloud.objects()
    wanted = request(tmp_path / "i", site.settings(elastic_address=given))
    launched(wanted)
    driver().stop(wanted)
    assert set(site.cloud.objects()) == set(before)
    assert not site.cloud.of("ReleaseAddress")


def test_an_outpost_server_gets_its_local_interface(site: Network, tmp_path: Path) -> None:
    settings = site.settings(lni_index=3, interfaces=[{"subnet": site.subnets[1], "address": "10.0.2.40"}])
    launched(request(tmp_path / "i", settings, cards=(card("10.0.1.50"),)))
    fields = one(site, "RunInstances").fields
    found = {
        fields[f"NetworkInterface.{number}.DeviceIndex"]: (
            fields[f"NetworkInterface.{number}.SubnetId"],
            fields.get(f"NetworkInterface.{number}.PrivateIpAddress", ""),
        )
        for number in (1, 2, 3)
    }
    assert found == {
        "0": (site.subnets[0], "10.0.1.50"),
        "1": (site.subnets[1], "10.0.2.40"),
        "3": (site.subnets[0], ""),
    }


def test_no_room_goes_on_to_the_next_type_then_to_the_next_subnet(site: Network, tmp_path: Path) -> None:
    def full(request: Request) -> bool:
        if request.action != "RunInstances":
            return False
        first = request.fields["NetworkInterface.1.SubnetId"] == site.subnets[0]
        return first or request.fields["InstanceType"] == "m5.large"

    site.cloud.fail_where(full, "InsufficientInstanceCapacity", status=500)
    said: list[str] = []
    time = Time()
    wanted = request(tmp_path / "i", site.settings())
    found = driver(time).launch(wanted, said.append)
    assert [
        (each.fields["InstanceType"], each.fields["NetworkInterface.1.SubnetId"])
        for each in site.cloud.of("RunInstances")
    ] == [(type_, subnet) for subnet in site.subnets for type_ in ("m5.large", "m5.xlarge")]
    assert len({each.fields["ClientToken"] for each in site.cloud.of("RunInstances")}) == 4
    assert (found.details["instance_type"], found.details["subnet"]) == ("m5.xlarge", site.subnets[1])
    assert f"m5.large in {site.subnets[0]}: InsufficientInstanceCapacity" in said
    assert max(time.slept, default=0.0) < calls_module.CAP_SECONDS, "a lack of room is not waited for"
    driver().stop(wanted)
    assert site.left() == []


def test_room_that_is_lost_while_it_is_stopped_makes_it_another_type(site: Network, tmp_path: Path) -> None:
    site.cloud.fail("StartInstances", "InsufficientInstanceCapacity", status=500, times=1)
    details = launched(request(tmp_path / "i", site.settings()))
    assert one(site, "ModifyInstanceAttribute").fields["InstanceType.Value"] == "m5.xlarge"
    assert details["instance_type"] == "m5.xlarge"


def test_throttling_is_waited_for_longer_each_time(site: Network, tmp_path: Path) -> None:
    site.cloud.fail("CreateVolume", "RequestLimitExceeded", status=503, times=5)
    time = Time()
    launched(request(tmp_path / "i", site.settings()), time)
    waits = [each for each in time.slept if each not in (0.5, 2.0, 3.0)][:5]
    for number, wait in enumerate(waits):
        assert 0.25 * 2**number <= wait <= 0.5 * 2**number


def test_an_answer_that_is_lost_is_asked_for_again_under_the_same_token(site: Network, tmp_path: Path) -> None:
    for action in ("RunInstances", "CreateVolume", "AttachVolume", "DeleteVolume", "StartInstances"):
        site.cloud.fail(action, after=True, times=1)
    wanted = request(tmp_path / "i", site.settings())
    launched(wanted)
    runs = site.cloud.of("RunInstances")
    assert len(runs) == 2
    assert runs[0] == runs[1]
    assert len(site.left()) == 2 + 1 + 1, "two volumes, an instance, an interface"
    driver().stop(wanted)
    assert site.left() == []


def test_what_was_just_made_may_be_unknown_for_a_while(site: Network, tmp_path: Path) -> None:
    site.cloud.hidden_looks = 3
    wanted = request(tmp_path / "i", site.settings())
    launched(wanted)
    assert len(site.cloud.hidden) == 4, "the instance, its small disk, and two volumes"
    assert set(site.cloud.hidden.values()) == {0}, "nothing was hidden"
    assert (len(site.cloud.of("RunInstances")), len(site.cloud.of("CreateVolume"))) == (1, 2)
    driver().stop(wanted)
    assert site.left() == []


def test_launched_again_after_a_stop_its_old_tokens_are_spent(site: Network, tmp_path: Path) -> None:
    """EC2 answers a token that it knows with what it made then, which is gone."""
    wanted = request(tmp_path / "i", site.settings())
    first = launched(wanted)
    driver().stop(wanted)
    again = launched(wanted)
    assert again["instance_id"] != first["instance_id"]
    assert not set(again["volumes"].values()) & set(first["volumes"].values())
    driver().stop(wanted)
    assert site.left() == []


def test_it_fits_the_source_where_no_type_is_named(site: Network, tmp_path: Path) -> None:
    site.cloud.offered = ["m5.xlarge", "t3.nano", "m5.large", "r5.large"]
    launched(request(tmp_path / "i", site.settings(instance_types=[])))
    assert one(site, "RunInstances").fields["InstanceType"] == "m5.large"


def test_an_image_for_other_processors_is_refused(site: Network, tmp_path: Path) -> None:
    wanted = request(tmp_path / "i", site.settings(), inventory=inventory(architecture="aarch64"))
    error = refused(wanted)
    assert error.kind is EC2_SETUP
    assert "is for x86_64, the source is aarch64" in error.message


def test_a_type_without_nvme_is_not_chosen(site: Network, tmp_path: Path) -> None:
    site.cloud.offered = ["m4.large", "m5.large"]
    launched(request(tmp_path / "i", site.settings(instance_types=[])))
    assert one(site, "RunInstances").fields["InstanceType"] == "m5.large"


def test_a_port_that_answers_is_health(site: Network, tmp_path: Path) -> None:
    """The stand-in's instances have no network: whoever listens is this test, on the loopback."""

    def at_home(request: Request, after: bool) -> None:
        if request.action == "StartInstances":
            for each in site.cloud.backend.all_instances():
                if each.id == request.fields["InstanceId.1"]:
                    each.nics[0].private_ip_addresses[0]["PrivateIpAddress"] = "127.0.0.1"
                    vars(each.nics[0])["private_ip_address"] = "127.0.0.1"

    site.cloud.watch = at_home
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        settings = site.settings(health_port=port, status_checks=False)
        wanted = request(tmp_path / "i", settings, timeout_seconds=8.0)
        assert launched(wanted)["private_address"] == "127.0.0.1"
    error = refused(wanted)
    assert error.kind is LAUNCH_FAILED
    assert f"port {port} of 127.0.0.1" in error.message
    driver().stop(wanted)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"outpost": OTHER_OUTPOST}, EC2_SETUP, f"not on {OTHER_OUTPOST}"),
        ({"subnets": ["subnet-0123456789abcdef0"]}, EC2_SETUP, "subnet-0123456789abcdef0"),
        ({"image": "ami-0123456789abcdef0"}, EC2_SETUP, "ami-0123456789abcdef0"),
        ({"boot_mode": "uefi"}, EC2_SETUP, "boots by bios, the source's disk by uefi"),
        ({"instance_types": ["z9.huge"]}, EC2_SETUP, "none of z9.huge is offered"),
        ({"address": "10.0.77.1"}, EC2_SETUP, "10.0.77.1 is not in 10.0.1.0/24"),
        ({"address": "10.0.1.255"}, EC2_SETUP, "one that AWS keeps"),
        ({"volumes": {"root": {"size_gib": 2}}}, EC2_SETUP, "is 1 bytes smaller than the disk"),
        ({"boot": "other"}, LAUNCH_SETTINGS, "no volume 'other'"),
        ({"helper": "i-0123456789abcdef0"}, EC2_SETUP, "no running helper instance i-0123456789abcdef0"),
        ({"instance_profile": "nobody"}, EC2_SETUP, "nobody"),
    ],
)
def test_what_does_not_fit_is_one_clear_error_and_leaves_nothing(
    site: Network, tmp_path: Path, changes: dict[str, Any], kind: ErrorKind, words: str
) -> None:
    wanted = request(tmp_path / "i", site.settings(**changes))
    error = refused(wanted)
    assert error.kind is kind
    assert words in error.message
    driver().stop(wanted)
    assert site.left() == []


@pytest.mark.parametrize(
    ("action", "code", "status", "kind"),
    [
        ("RunInstances", "InsufficientInstanceCapacity", 500, EC2_CAPACITY),
        ("RunInstances", "VcpuLimitExceeded", 400, EC2_QUOTA),
        ("CreateVolume", "VolumeLimitExceeded", 400, EC2_QUOTA),
        ("CreateVolume", "InsufficientVolumeCapacity", 500, EC2_CAPACITY),
        ("CreateVolume", "RequestLimitExceeded", 503, EC2_AWAY),
        ("CreateVolume", "InternalError", 500, EC2_AWAY),
        ("AttachVolume", "UnauthorizedOperation", 403, EC2_DENIED),
        ("StartInstances", "ExpiredToken", 400, EC2_DENIED),
    ],
)
def test_refusals_of_ec2_have_a_kind_and_leave_nothing(
    site: Network, tmp_path: Path, action: str, code: str, status: int, kind: ErrorKind
) -> None:
    site.cloud.fail(action, code, status=status)
    time = Time()
    wanted = request(tmp_path / "i", site.settings())
    error = refused(wanted, time)
    assert error.kind is kind
    assert code in error.message
    assert time.now - 1000.0 < 200.0
    site.cloud.rules.clear()
    driver().stop(wanted)
    assert site.left() == []


def test_no_answer_at_all_is_said_after_a_while(site: Network, tmp_path: Path) -> None:
    settings = site.settings(endpoint="http://127.0.0.1:9")
    error = refused(request(tmp_path / "i", settings))
    assert error.kind is EC2_AWAY
    assert "127.0.0.1:9" in error.message


def test_a_helper_that_can_not_is_quoted(site: Network, tmp_path: Path) -> None:
    wanted = request(tmp_path / "i", site.settings(), Helper(refuses="one disk has to have the serial number"))
    error = refused(wanted)
    assert error.kind is LAUNCH_FAILED
    assert error.message == f"{HOST}: one disk has to have the serial number"
    driver().stop(wanted)
    assert site.left() == []


def test_an_order_that_was_answered_for_other_volumes_does_not_count(site: Network, tmp_path: Path) -> None:
    class Stale(Helper):
        def __call__(self, *arguments: Any) -> Any:
            answer = super().__call__(*arguments)
            answer.result["done"] = dict.fromkeys(answer.result["done"], "vol0123456789abcdef0")
            return answer

    error = refused(request(tmp_path / "i", site.settings(), Stale()))
    assert "answered for other volumes" in error.message
    assert not site.cloud.of("CreateTags"), "a volume that nobody filled counts as filled"


def test_an_instance_that_ec2_ends_is_no_success(site: Network, tmp_path: Path) -> None:
    from moto.ec2.models.instances import StateReason  # to import it takes a second: of each worker, if it stood above

    def end(request: Request, after: bool) -> None:
        if request.action == "RunInstances" and after:
            for each in site.cloud.backend.all_instances():
                if each.id != site.helper and each._state.name == "running":
                    each.terminate()
                    vars(each)["state_reason"] = StateReason("the key is disabled", "Client.InternalError")

    site.cloud.watch = end
    wanted = request(tmp_path / "i", site.settings())
    error = refused(wanted)
    assert error.kind is EC2_SETUP
    assert "the key is disabled" in error.message
    driver().stop(wanted)
    assert site.left() == []


SETTINGS: dict[str, Any] = {
    "region": "eu-central-1",
    "subnets": ["subnet-0123456789abcdef0"],
    "security_groups": ["sg-0123456789abcdef0"],
    "image": "ami-0123456789abcdef0",
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"region": "Frankfurt"}, "region 'Frankfurt' is none"),
        ({"subnets": []}, "`subnets` is empty"),
        ({"subnets": "subnet-1"}, "$.subnets"),
        ({"subnets": ["net-1"]}, "'net-1' is no id of a subnet"),
        ({"security_groups": []}, "`security_groups` is empty"),
        ({"security_groups": ["default"]}, "'default' is no id of a security group"),
        ({"image": ""}, "`image` or `launch_template`"),
        ({"image": "debian"}, "'debian' is no id of an image"),
        ({"outpost": "op-1"}, "outpost 'op-1' is no such ARN"),
        ({"outpost": OUTPOST.replace("eu-central-1", "us-east-1")}, "is not in region eu-central-1"),
        ({"outpost": OUTPOST, "volume_type": "gp3"}, "EBS on an Outpost is gp2"),
        ({"outpost": OUTPOST, "volumes": {"data": {"type": "gp3"}}}, "volume type 'gp3': EBS on an Outpost is gp2"),
        ({"kms_key": "alias/x"}, "kms_key 'alias/x' is no such ARN"),
        ({"instance_types": ["large"]}, "instance type 'large' is none"),
        ({"boot_mode": "efi"}, "boot_mode 'efi' is none of bios, uefi"),
        ({"tenancy": "shared"}, "tenancy 'shared' is none of"),
        ({"dedicated_host": "h-0123456789abcdef0", "tenancy": "default"}, "goes with tenancy host"),
        ({"address": "10.0.1"}, "10.0.1"),
        ({"drill_from": ["10.0.1.1/24"]}, "10.0.1.1/24"),
        ({"elastic_address": "1.2.3.4"}, "elastic_address '1.2.3.4' is neither"),
        ({"lni_index": 16}, "lni_index 16"),
        ({"lni_index": 1, "interfaces": [{"subnet": "subnet-0123456789abcdef0"}]}, "taken by `interfaces`"),
        ({"health_port": 70000}, "health_port 70000"),
        ({"volumes": {"data": {"size_gib": -1}}}, "size_gib -1 of data"),
        ({"volumes": {"data": {"gib": 1}}}, "gib"),
        ({"tags": {"drengine:run": "x"}}, "begins as those of drengine do"),
        ({"tags": {"aws:x": "x"}}, "begins as those of AWS do"),
        ({"grace": "soon"}, "soon"),
        ({"user_data": "x" * 16385}, "user_data is longer than 16384 bytes"),
        ({"launch_template": "x:y"}, "launch_template 'x:y'"),
        ({"helper": "helper-1"}, "'helper-1' is no id of an instance"),
    ],
)
def test_mistakes_are_named_without_asking_ec2(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DrengineError) as caught:
        Ec2Driver().check_settings(SETTINGS | changes)
    assert caught.value.kind is LAUNCH_SETTINGS
    assert words in caught.value.message


def test_without_the_sdk_it_says_which_extra_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botocore.exceptions", None)
    with pytest.raises(DrengineError) as caught:
        Ec2Driver().check_settings(SETTINGS)
    assert caught.value.kind is LAUNCH_SETTINGS
    assert "pip install 'drengine[ec2]'" in caught.value.message


def test_without_credentials_it_says_so(site: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(DrengineError) as caught:
        Ec2Driver(Time().pace()).launch(request(tmp_path / "i", site.settings()), quiet)
    assert caught.value.kind is EC2_DENIED
    assert "credentials" in caught.value.message


def test_what_it_does_not_list_can_not_be_called(site: Network) -> None:
    calls = calls_module.Calls(read(site.settings()), Time().pace())
    with pytest.raises(KeyError):
        calls("DeleteVpc", VpcId="vpc-1")


def read(settings: dict[str, Any]) -> Any:
    from drengine.failover.drivers.ec2.settings import read_ec2_settings

    return read_ec2_settings(settings)


def test_its_machine_has_nvme_and_ena_and_boots_as_the_source_does() -> None:
    machine = Ec2Driver().machine(SETTINGS, inventory(boot_mode="uefi"))
    assert machine == Machine(disk_bus="nvme", card="ena", firmware="uefi", console="ttyS0")
    assert Ec2Driver().machine(SETTINGS, None).firmware == "bios"
    assert Ec2Driver().machine(SETTINGS | {"boot_mode": "uefi"}, inventory()).firmware == "uefi"


def test_without_a_host_and_a_broker_nothing_can_be_filled(site: Network, tmp_path: Path) -> None:
    wanted = replace(request(tmp_path / "i", site.settings()), order=None)
    error = refused(wanted)
    assert error.kind is LAUNCH_SETTINGS
    assert "`host`" in error.message
    driver().stop(wanted)
    assert site.left() == []


def test_more_disks_than_names(site: Network, tmp_path: Path) -> None:
    disks = tuple(Disk(f"d{number:02}", GIB, f"nbd://x/{number}") for number in range(14))
    wanted = replace(request(tmp_path / "i", site.settings(), inventory=None), disks=disks)
    launched(wanted)
    ours = [each for each in site.cloud.of("AttachVolume") if each.fields["InstanceId"] != site.helper]
    assert [each.fields["Device"] for each in ours][:3] == ["/dev/sda1", "/dev/sdf", "/dev/sdg"]
    assert [each.fields["Device"] for each in ours][-2:] == ["/dev/xvdba", "/dev/xvdbb"]
    driver().stop(wanted)
    assert site.left() == []
