"""What the `ec2` driver asks EC2 for, field by field, beside test_driver.py: template, network, swap, restart."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.backends import get_backend
from moto.ec2.models.instances import StateReason

from drengine.failover.addresses import missing_addresses
from drengine.failover.drivers.ec2.driver import Ec2Driver
from drengine.failover.drivers.ec2.errors import EC2_CAPACITY, EC2_DENIED, EC2_SETUP
from drengine.failover.drivers.errors import LAUNCH_FAILED
from drengine.model.errors import DrengineError
from drengine.model.hardware import Card
from tests.failover.drivers.ec2.site import Helper, Network, Time, driver, inventory, network, request
from tests.failover.drivers.ec2.standin import ACCOUNT, Request, running

PROFILE = f"arn:aws:iam::{ACCOUNT}:instance-profile/shop"


@pytest.fixture(scope="module")
def built() -> Iterator[Network]:
    with running() as cloud:
        iam: Any = get_backend("iam")[ACCOUNT]["aws"]
        iam.create_instance_profile(name="shop", path="/", role_names=[])
        cloud.client().create_key_pair(KeyName="ops")
        yield network(cloud)


@pytest.fixture
def site(built: Network) -> Iterator[Network]:
    site = built.afresh()
    yield site
    assert site.left() == [], "the test has to stop what it launched"


def quiet(_: str) -> None:
    pass


def one(site: Network, action: str) -> dict[str, str]:
    (found,) = site.cloud.of(action)
    return found.fields


def refused(wanted: Any, time: Time | None = None) -> DrengineError:
    with pytest.raises(DrengineError) as caught:
        driver(time).launch(wanted, quiet)
    driver().stop(wanted)
    return caught.value


def part(fields: dict[str, str], prefix: str) -> dict[str, str]:
    return {key.removeprefix(prefix): value for key, value in fields.items() if key.startswith(prefix)}


def test_role_key_and_placement(site: Network, tmp_path: Path) -> None:
    settings = site.settings(
        key_name="ops", instance_profile=PROFILE, tenancy="host", dedicated_host="h-0123456789abcdef0"
    )
    wanted = request(tmp_path / "i", settings | {"placement_group": "spread"})
    driver().launch(wanted, quiet)
    run = one(site, "RunInstances")
    driver().stop(wanted)
    assert run["KeyName"] == "ops"
    assert part(run, "IamInstanceProfile.") == {"Arn": PROFILE}
    assert part(run, "Placement.") == {"Tenancy": "host", "HostId": "h-0123456789abcdef0", "GroupName": "spread"}
    site.cloud.requests.clear()
    by_name = request(tmp_path / "j", site.settings(instance_profile="shop"))
    driver().launch(by_name, quiet)
    run = one(site, "RunInstances")
    driver().stop(by_name)
    assert part(run, "IamInstanceProfile.") == {"Name": "shop"}
    assert not part(run, "Placement.") and "KeyName" not in run


def test_the_images_disk_is_encrypted_too_and_nothing_is_where_nobody_wants_it(site: Network, tmp_path: Path) -> None:
    for encrypted in (True, False):
        site.cloud.requests.clear()
        wanted = request(tmp_path / str(encrypted), site.settings(encrypted=encrypted))
        driver().launch(wanted, quiet)
        driver().stop(wanted)
        told = {"DeleteOnTermination": "true", "VolumeSize": "15", "VolumeType": "gp2"}
        told |= {"Encrypted": "true"} if encrypted else {}
        assert part(one(site, "RunInstances"), "BlockDeviceMapping.1.Ebs.") == told
        assert {each.fields.get("Encrypted", "") for each in site.cloud.of("CreateVolume")} == {
            "true" if encrypted else ""
        }


def test_the_root_is_swapped_while_the_instance_is_stopped(site: Network, tmp_path: Path) -> None:
    given = site.cloud.client().allocate_address(Domain="vpc")["AllocationId"]
    site.cloud.requests.clear()
    wanted = request(tmp_path / "i", site.settings(elastic_address=given, user_data="x"))
    details = dict(driver().launch(wanted, quiet).details)
    id, volumes = details["instance_id"], details["volumes"]
    calls = [each for each in site.cloud.requests if not each.action.startswith("Describe")]
    swap = calls[[each.action for each in calls].index("StopInstances") :]
    told = [(each.action, each.fields) for each in swap]
    images = told[1][1]["VolumeId"]
    assert images not in volumes.values()
    assert [(action, {key: fields[key] for key in fields if key != "Version"}) for action, fields in told] == [
        ("StopInstances", {"InstanceId.1": id}),
        ("DetachVolume", {"VolumeId": images, "InstanceId": id}),
        ("DeleteVolume", {"VolumeId": images}),
        ("AttachVolume", {"VolumeId": volumes["root"], "InstanceId": id, "Device": "/dev/sda1"}),
        ("AttachVolume", {"VolumeId": volumes["data"], "InstanceId": id, "Device": "/dev/sdf"}),
        (
            "AssociateAddress",
            {
                "AllocationId": given,
                "NetworkInterfaceId": told[5][1]["NetworkInterfaceId"],
                "AllowReassociation": "true",
            },
        ),
        ("ModifyInstanceAttribute", {"InstanceId": id, "UserData.Value": "eA=="}),
        ("StartInstances", {"InstanceId.1": id}),
    ]
    driver().stop(wanted)
    site.cloud.client().release_address(AllocationId=given)


@pytest.mark.parametrize("lent", [True, False])
def test_later_steps_are_told_the_elastic_address_also_after_a_resume(
    site: Network, tmp_path: Path, lent: bool
) -> None:
    """A run that is resumed does not launch again: it inspects. A DNS change would get the private address."""
    given = site.cloud.client().allocate_address(Domain="vpc")
    named = given["AllocationId"] if lent else "ipv4pool-coip-0123456789abcdef0"
    wanted = request(tmp_path / "i", site.settings(elastic_address=named))
    launched = dict(driver().launch(wanted, quiet).details)
    found = dict(driver().inspect(wanted).details)
    driver().stop(wanted)
    site.cloud.client().release_address(AllocationId=given["AllocationId"])
    assert found == launched
    assert found["address"] == found["elastic_address"] != found["private_address"]
    if lent:
        assert found["address"] == given["PublicIp"]


class TestTemplate:
    @pytest.fixture
    def templates(self, site: Network) -> Iterator[Network]:
        ec2 = site.cloud.client()
        ec2.create_launch_template(LaunchTemplateName="plain", LaunchTemplateData={"ImageId": site.image})
        data: dict[str, Any] = {"ImageId": site.image, "IamInstanceProfile": {"Name": "shop"}}
        ec2.create_launch_template(LaunchTemplateName="role", LaunchTemplateData=data)
        ec2.create_launch_template(LaunchTemplateName="bare", LaunchTemplateData={"KeyName": "ops"})
        site.cloud.requests.clear()
        yield site
        for name in ("plain", "role", "bare"):
            ec2.delete_launch_template(LaunchTemplateName=name)

    def test_what_the_settings_say_goes_before_it(self, templates: Network, tmp_path: Path) -> None:
        site = templates
        wanted = request(tmp_path / "i", site.settings(image="", launch_template="plain:1"))
        driver().launch(wanted, quiet)
        driver().stop(wanted)
        run = one(site, "RunInstances")
        assert part(run, "LaunchTemplate.") == {"LaunchTemplateName": "plain", "Version": "1"}
        assert run["ImageId"] == site.image
        assert run["NetworkInterface.1.SubnetId"] == site.subnets[0]
        asked = one(site, "DescribeLaunchTemplateVersions")
        assert (asked["LaunchTemplateName"], asked["LaunchTemplateVersion.1"]) == ("plain", "1")

    def test_its_image_has_to_boot_as_the_source_does(self, templates: Network, tmp_path: Path) -> None:
        settings = templates.settings(image="", launch_template="plain", boot_mode="uefi")
        error = refused(request(tmp_path / "i", settings))
        assert "boots by bios" in error.message

    def test_a_drill_takes_none_that_brings_a_role(self, templates: Network, tmp_path: Path) -> None:
        """A role is a way to production that no subnet closes."""
        wanted = request(tmp_path / "i", templates.settings(launch_template="role"), isolated=True)
        error = refused(wanted)
        assert error.kind is EC2_SETUP
        assert "launch template role has an instance profile: a drill gets none" in error.message
        assert not templates.cloud.of("RunInstances")
        (fault,) = [each.fault for each in driver().ask_cloud(wanted) if "profile" in each.fault]
        assert fault == error.message

    @pytest.mark.parametrize(("name", "words"), [("bare", "names no image"), ("none", "none"), ("plain:7", "7")])
    def test_one_that_can_not_be_used_is_said(self, templates: Network, tmp_path: Path, name: str, words: str) -> None:
        wanted = request(tmp_path / "i", templates.settings(image="", launch_template=name))
        error = refused(wanted)
        assert error.kind is EC2_SETUP
        assert words in error.message
        assert any(words in each.fault for each in driver().ask_cloud(wanted))


class TestAddresses:
    CARDS = (
        Card(name="eth0", addresses=("10.0.1.70/24", "10.0.1.71/24", "2001:db8::70/64")),
        Card(name="eth1", addresses=("10.0.2.70/24",)),
        Card(name="eth2", addresses=("10.7.0.70/24",)),
    )

    def test_the_server_is_asked_for_and_seen_with_its_cards_addresses(self, site: Network, tmp_path: Path) -> None:
        settings = site.settings(interfaces=[{"subnet": site.subnets[1]}])
        wanted = request(tmp_path / "i", settings, cards=self.CARDS)
        assert driver().addresses(wanted) is None, "nothing was launched yet"
        driver().launch(wanted, quiet)
        fields = one(site, "RunInstances")
        assert fields["NetworkInterface.1.PrivateIpAddress"] == "10.0.1.70"
        assert part(fields, "NetworkInterface.1.PrivateIpAddresses.") == {
            "1.PrivateIpAddress": "10.0.1.71",
            "1.Primary": "false",
        }
        assert fields["NetworkInterface.2.PrivateIpAddress"] == "10.0.2.70"
        seen = driver().addresses(wanted)
        driver().stop(wanted)
        assert seen is not None and set(seen) >= {"10.0.1.70", "10.0.1.71", "10.0.2.70"}
        assert missing_addresses(self.CARDS, seen) == []

    def test_what_ec2_did_not_give_is_missed(self, site: Network, tmp_path: Path) -> None:
        def take_away(asked: Request, after: bool) -> None:
            if asked.action == "StartInstances" and after:
                for each in site.cloud.backend.all_instances():
                    if each.id == asked.fields["InstanceId.1"]:
                        each.nics[0].private_ip_addresses.pop()

        site.cloud.watch = take_away
        wanted = request(tmp_path / "i", site.settings(), cards=self.CARDS[:1])
        driver().launch(wanted, quiet)
        seen = driver().addresses(wanted)
        driver().stop(wanted)
        assert seen is not None
        assert missing_addresses(wanted.cards, seen) == ["10.0.1.71/24 of eth0"]

    def test_what_no_interface_gets_is_said_before(self, site: Network, tmp_path: Path) -> None:
        wanted = request(tmp_path / "i", site.settings(), cards=self.CARDS[:2])
        (fault,) = [each for each in driver().ask_cloud(wanted) if each.fault]
        assert fault.warns
        assert fault.fault == "no interface of it gets 2001:db8::70/64, 10.0.2.70/24"

    def test_a_card_that_asks_by_dhcp_is_given_any(self, site: Network, tmp_path: Path) -> None:
        cards = (Card(name="eth0", dhcp=True, addresses=("192.168.7.7/24",)),)
        wanted = request(tmp_path / "i", site.settings(), cards=cards)
        driver().launch(wanted, quiet)
        seen = driver().addresses(wanted)
        driver().stop(wanted)
        assert "NetworkInterface.1.PrivateIpAddress" not in one(site, "RunInstances")
        assert seen is not None and missing_addresses(cards, seen) == []

    def test_settings_that_contradict_the_cards_are_refused(self, site: Network, tmp_path: Path) -> None:
        """Its disks are made for the card's address: at another one it would not be heard."""
        wanted = request(tmp_path / "i", site.settings(address="10.0.1.9"), cards=self.CARDS[:1])
        error = refused(wanted)
        assert error.kind is EC2_SETUP
        assert error.message == "address 10.0.1.9 of the settings is not one of eth0: 10.0.1.70, 10.0.1.71"
        assert error.message in [each.fault for each in driver().ask_cloud(wanted)]
        second = request(tmp_path / "j", site.settings(address="10.0.1.71"), cards=self.CARDS[:1])
        driver().launch(second, quiet)
        driver().stop(second)
        assert one(site, "RunInstances")["NetworkInterface.1.PrivateIpAddress"] == "10.0.1.71"


@pytest.mark.parametrize(("image", "source"), [("uefi", "uefi"), ("uefi-preferred", "uefi"), ("legacy-bios", "bios")])
def test_image_and_disk_boot_alike(site: Network, tmp_path: Path, image: str, source: str) -> None:
    site.cloud.boot_mode = image
    wanted = request(tmp_path / "i", site.settings(), inventory=inventory(boot_mode=source))
    assert driver().launch(wanted, quiet).healthy
    driver().stop(wanted)


def test_an_image_that_prefers_uefi_boots_no_disk_for_bios(site: Network, tmp_path: Path) -> None:
    site.cloud.boot_mode = "uefi-preferred"
    assert "boots by uefi, the source's disk by bios" in refused(request(tmp_path / "i", site.settings())).message


def test_a_drill_that_was_stopped_can_be_launched_again(site: Network, tmp_path: Path) -> None:
    """Its group is another, so EC2 refuses the old token: it was used for another request."""
    wanted = request(tmp_path / "i", site.settings(), isolated=True)
    for _ in range(2):
        assert driver().launch(wanted, quiet).healthy
        driver().stop(wanted)
    assert len(site.cloud.of("CreateSecurityGroup")) == 2


class TestStartedAgain:
    """EC2 takes the call, and then stops the instance."""

    def stops(self, site: Network, code: str, times: int) -> None:
        left = [times]

        def stop(asked: Request, after: bool) -> None:
            if asked.action == "StartInstances" and after and left[0]:
                left[0] -= 1
                for each in site.cloud.backend.all_instances():
                    if each.id == asked.fields["InstanceId.1"]:
                        each.stop()
                        vars(each)["state_reason"] = StateReason("as the test wants it", code)

        site.cloud.watch = stop

    def test_for_want_of_room_it_is_tried_as_the_next_type(self, site: Network, tmp_path: Path) -> None:
        self.stops(site, "Server.InsufficientInstanceCapacity", 1)
        wanted = request(tmp_path / "i", site.settings())
        found = driver().launch(wanted, quiet)
        driver().stop(wanted)
        assert one(site, "ModifyInstanceAttribute")["InstanceType.Value"] == "m5.xlarge"
        assert found.details["instance_type"] == "m5.xlarge"

    def test_what_keeps_it_from_running_is_said_at_once(self, site: Network, tmp_path: Path) -> None:
        """As a volume's key that is disabled."""
        self.stops(site, "Client.InvalidKMSKey.InvalidState", 9)
        time = Time()
        error = refused(request(tmp_path / "i", site.settings()), time)
        assert error.kind is EC2_SETUP
        assert error.message == "EC2 ended the instance: as the test wants it"
        assert time.now < 1100.0


def test_a_guest_that_does_not_shut_down_is_switched_off_after_its_grace(site: Network, tmp_path: Path) -> None:
    def goes_on(asked: Request, after: bool) -> None:
        if asked.action == "StopInstances" and after and "Force" not in asked.fields:
            for each in site.cloud.backend.all_instances():
                if each.id == asked.fields["InstanceId.1"]:
                    each._state.name, each._state.code = "stopping", 64

    helper, time = Helper(), Time()
    wanted = request(tmp_path / "i", site.settings(grace="40s"), helper)
    driver().launch(wanted, quiet)
    site.cloud.requests.clear()
    site.cloud.watch = goes_on
    driver(time).quiesce(wanted)
    assert [each.fields.get("Force", "") for each in site.cloud.of("StopInstances")] == ["", "true"]
    assert 40.0 <= time.now - 1000.0 < 60.0
    assert helper.orders[-1][1]["direction"] == "return", "what it wrote is brought home all the same"
    driver().stop(wanted)


def test_checks_of_ec2_that_fail_are_no_health(site: Network, tmp_path: Path) -> None:
    site.cloud.status = "impaired"
    wanted = request(tmp_path / "i", site.settings(), timeout_seconds=20.0)
    error = refused(wanted)
    assert error.kind is LAUNCH_FAILED
    assert error.message == "not healthy in time: EC2's SystemStatus is impaired"
    unlooked = request(tmp_path / "j", site.settings(status_checks=False))
    assert driver().launch(unlooked, quiet).healthy
    driver().stop(unlooked)


def test_credentials_that_end_on_the_way_are_renewed_and_it_goes_on(site: Network, tmp_path: Path) -> None:
    site.cloud.fail("AttachVolume", "RequestExpired", times=1)
    wanted = request(tmp_path / "i", site.settings())
    with pytest.raises(DrengineError) as caught:
        driver().launch(wanted, quiet)
    assert caught.value.kind is EC2_DENIED
    assert driver().launch(wanted, quiet).healthy
    driver().stop(wanted)
    assert (len(site.cloud.of("RunInstances")), len(site.cloud.of("CreateVolume"))) == (1, 2)


@pytest.mark.parametrize("way", ["environment", "profile", "process"])
def test_credentials_come_by_the_sdks_own_chain(
    site: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Each has a key of its own, and the requests are signed with it."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    told = tmp_path / "told.json"
    told.write_text('{"Version": 1, "AccessKeyId": "PROCESS", "SecretAccessKey": "s"}')
    config = tmp_path / "config"
    config.write_text(
        "[profile site]\naws_access_key_id = PROFILE\naws_secret_access_key = s\n"
        f"[profile broker]\ncredential_process = cat {told}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    if way == "environment":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ENVIRONMENT")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    settings = site.settings(profile={"profile": "site", "process": "broker"}.get(way, ""))
    Ec2Driver(Time().pace()).inspect(request(tmp_path / "i", settings))
    assert {each.key for each in site.cloud.requests} == {way.upper()}


def test_a_fixed_address_needs_no_room_in_other_subnets(site: Network, tmp_path: Path) -> None:
    """Only the second one has it. And what is said when there is no room is about room."""
    cards = (Card(name="eth0", addresses=("10.0.2.77/24",)),)
    wanted = request(tmp_path / "i", site.settings(), cards=cards)
    assert not [each.fault for each in driver().ask_cloud(wanted) if each.fault]
    site.cloud.fail("RunInstances", "InsufficientInstanceCapacity", times=2)
    assert refused(wanted).kind is EC2_CAPACITY
    assert driver().launch(wanted, quiet).details["subnet"] == site.subnets[1]
    driver().stop(wanted)


def test_of_two_that_were_launched_one_is_kept(site: Network, tmp_path: Path) -> None:
    """Killed after the second type was launched, which can't be seen yet, and now the first has room again."""
    from tests.failover.drivers.ec2.test_kills import Fatal, Killed

    site.cloud.fail_where(
        lambda asked: asked.action == "RunInstances" and asked.fields["InstanceType"] == "m5.large",
        "InsufficientInstanceCapacity",
        times=1,
    )
    site.cloud.hidden_looks = 1
    wanted = request(tmp_path / "i", site.settings())
    with pytest.raises(Killed):
        Ec2Driver(Time().pace(), Fatal(1)).launch(wanted, quiet)
    found = driver().launch(wanted, quiet)
    assert found.details["instance_type"] == "m5.large"
    assert len(site.cloud.of("TerminateInstances")) == 1
    assert sorted(id.partition("-")[0] for id in site.left()) == ["eni", "i", "vol", "vol"]
    driver().stop(wanted)


def test_its_health_command_is_told_where_it_is(site: Network, tmp_path: Path) -> None:
    place = tmp_path / "told"
    program = f"import os; open({str(place)!r}, 'w').write(os.environ['DRENGINE_PRIVATE_ADDRESS'])"
    wanted = request(tmp_path / "i", site.settings(health=[sys.executable, "-c", program]))
    found = driver().launch(wanted, quiet)
    driver().stop(wanted)
    assert place.read_text() == found.details["private_address"]
