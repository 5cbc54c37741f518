"""What EC2 is asked before the day: each mistake is found by its check, and nothing is made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drengine.failover.drivers.driver import AsksCloud, AsksHost, CloudFinding, Disk
from drengine.failover.drivers.ec2.calls import OPERATIONS
from drengine.failover.drivers.ec2.driver import Ec2Driver
from drengine.failover.preflight.clouds import TOLD
from tests.failover.drivers.ec2.site import HOST, Network, Time, card, connect, driver, inventory, network, request
from tests.failover.drivers.ec2.standin import OTHER_OUTPOST, running
from tests.failover.engine.prompt import Typed
from tests.recovery.replica import make


@pytest.fixture(scope="module")
def built() -> Iterator[Network]:
    with running() as cloud:
        yield network(cloud)


@pytest.fixture
def site(built: Network) -> Network:
    return built.afresh()


def look(site: Network, folder: Path, settings: dict[str, Any] | None = None, **more: Any) -> list[CloudFinding]:
    """What was found; nothing was made, and only dry runs were asked of what changes something."""
    found = driver().ask_cloud(request(folder / "i", settings or site.settings(), **more))
    changing = [each for each in site.cloud.requests if OPERATIONS[each.action].changes]
    assert all(each.fields.get("DryRun") == "true" for each in changing)
    assert site.left() == []
    assert {each.check for each in found} <= set(TOLD)
    return found


def faults(found: list[CloudFinding]) -> dict[str, str]:
    return {each.check: each.fault for each in found if each.fault}


def test_where_all_is_well_it_says_what_it_saw_and_what_needs_the_region(site: Network, tmp_path: Path) -> None:
    found = look(site, tmp_path)
    assert faults(found) == {}
    assert {each.check for each in found} == set(TOLD)
    seen = "; ".join(each.seen for each in found)
    assert "with the region cut off it can't be carried out" in seen
    assert "RunInstances, CreateVolume for data, CreateVolume for root would be permitted" in seen
    assert "quota L-1216C47A is 64 CPUs, m5.large has 2" in seen
    assert {each.action for each in site.cloud.requests if each.fields.get("DryRun") == "true"} == {
        "RunInstances",
        "CreateVolume",
    }


def test_a_drill_asks_what_a_drill_makes(site: Network, tmp_path: Path) -> None:
    found = look(site, tmp_path, isolated=True)
    assert faults(found) == {}
    asked = {each.action for each in site.cloud.requests if each.fields.get("DryRun") == "true"}
    assert "CreateSecurityGroup" in asked


@pytest.mark.parametrize("own", [True, False])
def test_a_way_out_of_a_drills_subnet_is_seen(site: Network, tmp_path: Path, own: bool) -> None:
    """By its own route table, or by the main one of its VPC."""
    ec2 = site.cloud.client()
    vpc = ec2.describe_subnets(SubnetIds=[site.drill_subnet])["Subnets"][0]["VpcId"]
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    main = [{"Name": "association.main", "Values": ["true"]}, {"Name": "vpc-id", "Values": [vpc]}]
    table = ec2.describe_route_tables(Filters=main)["RouteTables"][0]["RouteTableId"]
    association = ""
    if own:
        table = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
        association = ec2.associate_route_table(RouteTableId=table, SubnetId=site.drill_subnet)["AssociationId"]
    ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    site.cloud.requests.clear()
    try:
        (fault,) = [each for each in look(site, tmp_path, isolated=True) if each.fault]
        assert fault.warns
        assert fault.fault == "the drill's subnets have a route to 0.0.0.0/0"
    finally:
        ec2.delete_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0")
        ec2.detach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
        if own:
            ec2.disassociate_route_table(AssociationId=association)


@pytest.mark.parametrize(
    ("changes", "check", "words"),
    [
        ({"outpost": OTHER_OUTPOST}, "cloud-fits", "not on arn:aws:outposts"),
        ({"image": "ami-0123456789abcdef0"}, "cloud-fits", "ami-0123456789abcdef0"),
        ({"boot_mode": "uefi"}, "cloud-fits", "boots by bios"),
        ({"instance_types": ["z9.huge"]}, "cloud-fits", "z9.huge"),
        ({"instance_types": ["m5.large", "z9.huge"]}, "cloud-fits", "z9.huge is not offered"),
        ({"helper": "i-0123456789abcdef0"}, "cloud-fits", "no running helper"),
        ({"volumes": {"root": {"size_gib": 2}}}, "cloud-fits", "1 bytes smaller"),
        ({"boot": "other"}, "cloud-fits", "no volume 'other'"),
        ({"security_groups": ["sg-0123456789abcdef0"]}, "cloud-fits", "sg-0123456789abcdef0"),
        ({"key_name": "nobody's"}, "cloud-fits", "nobody's"),
        ({"elastic_address": "eipalloc-0123456789abcdef0"}, "cloud-fits", "eipalloc-0123456789abcdef0"),
        ({"lni_index": 1}, "cloud-fits", "local network interfaces at none"),
        ({"address": "10.0.77.7"}, "cloud-fits", "10.0.77.7 is not in"),
        ({"volumes": {"dta": {"size_gib": 9}}}, "cloud-fits", "`volumes` names 'dta'"),
    ],
)
def test_mistakes_are_found(site: Network, tmp_path: Path, changes: dict[str, Any], check: str, words: str) -> None:
    told = faults(look(site, tmp_path, site.settings(**changes)))
    assert words in told[check]


def test_an_address_that_another_has_is_found(site: Network, tmp_path: Path) -> None:
    there = site.cloud.client().describe_instances(InstanceIds=[site.helper])["Reservations"][0]["Instances"][0]
    address = there["PrivateIpAddress"]
    told = faults(look(site, tmp_path, site.settings(subnets=site.subnets[:1]), cards=(card(address),)))
    assert told == {"cloud-fits": f"address {address} of {site.subnets[0]} is that of {site.helper}"}


def test_a_helper_elsewhere_can_fill_nothing(site: Network, tmp_path: Path) -> None:
    site.cloud.outposts = dict.fromkeys(site.cloud.outposts, OTHER_OUTPOST)
    site.cloud.outposts[site.subnets[0]] = site.settings()["outpost"]
    moved = site.cloud.client().describe_instances(InstanceIds=[site.helper])["Reservations"][0]["Instances"][0]
    elsewhere = next(each for each in site.subnets if each != moved["SubnetId"])
    site.cloud.outposts[elsewhere], site.cloud.outposts[moved["SubnetId"]] = (
        site.settings()["outpost"],
        OTHER_OUTPOST,
    )
    before = {**site.cloud.outposts}
    try:
        told = faults(look(site, tmp_path, site.settings(subnets=[elsewhere])))
        assert f"the helper {site.helper} is on {OTHER_OUTPOST}" in told["cloud-fits"]
    finally:
        site.cloud.outposts = dict.fromkeys(before, site.settings()["outpost"])


@pytest.mark.parametrize(
    ("action", "code", "check"),
    [
        ("DescribeSubnets", "RequestExpired", "cloud-permitted"),
        ("DescribeSubnets", "AuthFailure", "cloud-permitted"),
        ("DescribeSubnets", "RequestLimitExceeded", "cloud-reachable"),
        ("DescribeSubnets", "InternalError", "cloud-reachable"),
        ("CreateVolume", "UnauthorizedOperation", "cloud-permitted"),
        ("RunInstances", "UnauthorizedOperation", "cloud-permitted"),
    ],
)
def test_what_ec2_refuses_is_found(site: Network, tmp_path: Path, action: str, code: str, check: str) -> None:
    site.cloud.fail(action, code)
    told = faults(look(site, tmp_path))
    assert list(told) == [check]
    assert code in told[check]


def test_a_quota_that_is_too_small_warns_and_one_that_can_not_be_asked_does_not(site: Network, tmp_path: Path) -> None:
    site.cloud.quota = 1
    (fault,) = [each for each in look(site, tmp_path) if each.fault]
    assert (fault.check, fault.warns) == ("cloud-room", True)
    site.cloud.fail("GetServiceQuota", "AccessDeniedException")
    assert faults(look(site, tmp_path)) == {}


@pytest.mark.parametrize(
    ("type_", "code"),
    [
        ("m5.large", "L-1216C47A"),
        ("inf1.xlarge", "L-1945791B"),
        ("g4dn.xlarge", "L-DB2E81BA"),
        ("t3.nano", "L-1216C47A"),
    ],
)
def test_quotas_of_cpus_are_by_family_and_of_volumes_by_type(
    site: Network, tmp_path: Path, type_: str, code: str
) -> None:
    site.cloud.offered = [type_]
    look(site, tmp_path, site.settings(instance_types=[type_]))
    asked = [each.fields for each in site.cloud.requests if each.action == "GetServiceQuota"]
    assert [
        (json.loads(next(iter(each)))["ServiceCode"], json.loads(next(iter(each)))["QuotaCode"]) for each in asked
    ] == [
        ("ec2", code),
        ("ebs", "L-D18FCD1D"),
    ]


def test_disks_for_which_the_account_has_no_storage_are_said(site: Network, tmp_path: Path) -> None:
    disks = (Disk("root", 3 << 40, "nbd://x/root"),)
    site.cloud.quota = 2
    (fault,) = [each for each in look(site, tmp_path, disks=disks) if each.fault]
    assert fault.warns
    assert fault.fault == "the account's quota L-D18FCD1D is 2 TiB of gp2, the disks have 3"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cpus": 3}, "m5.large has 2 CPUs, the source 3"),
        ({"memory_bytes": 9 << 30}, "m5.large has 8192 MiB, the source 9216"),
    ],
)
def test_a_named_type_that_is_smaller_than_the_source_is_said(
    site: Network, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    (fault,) = [each for each in look(site, tmp_path, inventory=inventory(**changes)) if each.fault]
    assert (fault.fault, fault.warns) == (words, True)


def test_a_named_type_without_nvme_is_said(site: Network, tmp_path: Path) -> None:
    site.cloud.offered = ["m4.large"]
    (fault,) = [each for each in look(site, tmp_path, site.settings(instance_types=["m4.large"])) if each.fault]
    assert fault.fault == "m4.large has neither NVMe disks nor ENA cards"


def test_it_says_that_what_is_written_there_reaches_no_points(site: Network, tmp_path: Path) -> None:
    words = "reaches no recovery points"
    assert words in "; ".join(each.seen for each in look(site, tmp_path))
    assert words not in "; ".join(each.seen for each in look(site, tmp_path, isolated=True))


def test_plan_tells_people_what_needs_the_region(
    site: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though nothing is wrong with it."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    make(tmp_path / "store")
    launch = {"driver": "ec2", "host": HOST, "settings": site.settings()}
    fenced = {"command": ["true"]}
    book = tmp_path / "shop.yaml"
    waves = [{"name": "all", "sources": ["shop"]}]
    sources = {"shop": {"fence": fenced, "launch": launch}}
    book.write_text(json.dumps({"version": 1, "name": "shop", "sources": sources, "waves": waves}))
    code, out, err = Typed(tmp_path, capsys)("plan", str(book), "--mode", "failover")
    assert code == 0, err
    told = " ".join(out.split())
    assert "shop: EC2 in eu-central-1 answers; this launch needs it from the first call to the last" in told
    assert "reaches no recovery points until `failback` brings it back" in told


def test_a_region_that_is_away_is_said_in_time(site: Network, tmp_path: Path) -> None:
    time = Time()
    wanted = request(tmp_path / "i", site.settings(endpoint="http://127.0.0.1:9"))
    (fault,) = Ec2Driver(time.pace(), connect).ask_cloud(wanted)
    assert fault.check == "cloud-reachable"
    assert time.now - 1000.0 < 20.0, "preflight does not wait so long"


def test_a_source_that_never_told_its_size_needs_types(site: Network, tmp_path: Path) -> None:
    told = faults(look(site, tmp_path, site.settings(instance_types=[]), inventory=None))
    assert "name `instance_types`" in told["cloud-fits"]
    huge = inventory(cpus=4096, memory_bytes=9 << 50)
    told = faults(look(site, tmp_path, site.settings(instance_types=[]), inventory=huge))
    assert "has 4096 CPUs" in told["cloud-fits"]


def test_it_is_asked_by_preflight_and_so_is_its_helper() -> None:
    assert isinstance(Ec2Driver(), AsksCloud)
    assert isinstance(Ec2Driver(), AsksHost)
