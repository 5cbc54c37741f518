"""A stand-in for EC2: moto in server mode behind a recorder, which also does what moto leaves out.

moto takes OutpostArn and drops it, knows no offerings of an Outpost, and makes an object for each call whatever its
client token. The recorder keeps each request as it came, answers for those three, and fails calls as tests want it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl
from xml.etree import ElementTree

import boto3
from botocore.config import Config
from werkzeug.serving import make_server

os.environ.setdefault("MOTO_AMIS_PATH", str(Path(__file__).with_name("images.json")))  # it knows thousands else

from moto.backends import get_backend
from moto.moto_server.werkzeug_app import (
    MotoRequestHandler,
    create_backend_app,
)

REGION, ZONE, ACCOUNT = "eu-central-1", "eu-central-1a", "123456789012"
OUTPOST = f"arn:aws:outposts:{REGION}:{ACCOUNT}:outpost/op-0123456789abcdef0"
OTHER_OUTPOST = f"arn:aws:outposts:{REGION}:{ACCOUNT}:outpost/op-0fedcba9876543210"
NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15"
_MADE = re.compile(rb"<(?:instanceId|volumeId)>((?:i|vol)-[0-9a-f]+)</")

_SIGNER = re.compile(r"Credential=([^/]+)/")

Fields = dict[str, str]

logging.getLogger("werkzeug").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Request:
    """A request as it came: EC2's flat fields by name (`TagSpecification.1.Tag.2.Key`), and whose key signed it."""

    action: str
    fields: Fields
    key: str = ""

    def listed(self, prefix: str, suffix: str = "") -> list[str]:
        """The values of `PREFIX.1SUFFIX`, `PREFIX.2SUFFIX`, ..."""
        found, number = [], 1
        while (value := self.fields.get(f"{prefix}.{number}{suffix}")) is not None:
            found.append(value)
            number += 1
        return found

    def tags(self, kind: str) -> dict[str, str]:
        """Those that the call gives to what it makes of a kind."""
        for number in range(1, 9):
            place = f"TagSpecification.{number}"
            if self.fields.get(f"{place}.ResourceType") == kind:
                return self._tags(f"{place}.Tag")
        return self._tags("Tag") if self.action == "CreateTags" else {}

    def _tags(self, prefix: str) -> dict[str, str]:
        keys = {key: value for key, value in self.fields.items() if re.fullmatch(rf"{prefix}\.\d+\.Key", key)}
        return {value: self.fields.get(f"{key.removesuffix('Key')}Value", "") for key, value in keys.items()}


class DropError(ConnectionResetError):
    """The connection ends without an answer."""


@dataclass
class Rule:
    """What is to become of calls: `before` they are carried out, or after; as often as `times`."""

    matches: Callable[[Request], bool]
    code: str = ""
    message: str = "so the test wants it"
    status: int = 400
    after: bool = False
    times: int = 1 << 30


@dataclass
class Cloud:
    """What the recorder knows beside moto."""

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    outposts: dict[str, str] = field(default_factory=dict)
    """By subnet."""
    offered: list[str] = field(default_factory=lambda: ["m5.large", "m5.xlarge", "c5.2xlarge"])
    quota: float = 64.0
    boot_mode: str = "legacy-bios"
    """Of all images."""
    status: str = "ok"
    """Of EC2's checks of all instances."""
    tokens: dict[tuple[str, str], tuple[Fields, bytes]] = field(default_factory=dict)
    user_data: dict[str, str] = field(default_factory=dict)
    """By instance, encoded."""
    hidden_looks: int = 0
    """For so many looks an object that was just made can't be seen."""
    hidden: dict[str, int] = field(default_factory=dict)
    watch: Callable[[Request, bool], None] | None = None
    """Called before (False) and after (True) each call is carried out; what it raises ends the connection."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def backend(self) -> Any:
        """moto's own objects."""
        return get_backend("ec2")[ACCOUNT][REGION]

    def fail(self, action: str, code: str = "", **more: Any) -> None:
        """Refuse calls of an action; without a code the connection ends instead."""
        self.fail_where(lambda request: request.action == action, code, **more)

    def fail_where(self, matches: Callable[[Request], bool], code: str, **more: Any) -> None:
        """The same of the calls that match."""
        self.rules.append(Rule(matches, code, **more))

    def of(self, *actions: str) -> list[Request]:
        """The requests of these actions that were no dry run."""
        return [each for each in self.requests if each.action in actions and each.fields.get("DryRun") != "true"]

    def forget(self) -> None:
        """Whatever a test has arranged."""
        fresh = Cloud(self.url)
        self.requests, self.rules, self.hidden, self.watch = fresh.requests, fresh.rules, fresh.hidden, fresh.watch
        self.hidden_looks, self.offered, self.boot_mode = fresh.hidden_looks, fresh.offered, fresh.boot_mode
        self.quota, self.status = fresh.quota, fresh.status

    def client(self, service: str = "ec2") -> Any:
        """The SDK's, for what a test prepares."""
        return _client(service, self.url)

    def objects(self) -> list[str]:
        """Ids of whatever the driver may have made and is there still."""
        backend = self.backend
        living = [
            each.id
            for reservation in backend.reservations.values()
            for each in reservation.instances
            if each._state.name != "terminated"
        ]
        groups = [group.id for groups in backend.groups.values() for group in groups.values()]
        addresses = [each.allocation_id for each in backend.addresses]
        return sorted([*living, *backend.volumes, *backend.enis, *addresses, *groups])


@functools.cache
def _client(service: str, url: str) -> Any:
    session = boto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name=REGION)
    return session.client(service, endpoint_url=url, config=Config(retries={"total_max_attempts": 1}))


class Recorder:
    """The application between the server and moto."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._moto = create_backend_app("ec2")

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        fields = dict(parse_qsl(body.decode(), keep_blank_values=True))
        action = fields.pop("Action", environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2])
        signed = _SIGNER.search(environ.get("HTTP_AUTHORIZATION", ""))
        request = Request(action, fields, signed[1] if signed else "")
        cloud = self._cloud
        with cloud.lock, _dropping(environ["werkzeug.socket"]):
            cloud.requests.append(request)
            if (refused := self._ruled(request, after=False)) is not None:
                return _answer(start, refused[0], refused[1])
            self._watch(request, after=False)
            try:
                status, answer = self._carried_out(request, environ)
            except _NotFoundError as error:
                return _answer(start, 400, _error(error.args[0], f"{error.args[1]} does not exist"))
            self._watch(request, after=True)
            if status == 200 and (refused := self._ruled(request, after=True)) is not None:
                return _answer(start, refused[0], refused[1])
        return _answer(start, status, answer)

    def _watch(self, request: Request, *, after: bool) -> None:
        if self._cloud.watch is not None and request.fields.get("DryRun") != "true":
            self._cloud.watch(request, after)

    def _ruled(self, request: Request, *, after: bool) -> tuple[int, bytes] | None:
        for rule in self._cloud.rules:
            if rule.after is after and rule.times > 0 and rule.matches(request):
                rule.times -= 1
                if not rule.code:
                    raise DropError
                return rule.status, _error(rule.code, rule.message)
        return None

    def _carried_out(self, request: Request, environ: dict[str, Any]) -> tuple[int, bytes]:
        cloud = self._cloud
        token = (request.action, request.fields.get("ClientToken", ""))
        if token[1] and token in cloud.tokens and request.fields.get("DryRun") != "true":
            fields, answer = cloud.tokens[token]
            if fields != request.fields:
                return 400, _error("IdempotentParameterMismatch", "the token was used for another request")
            return 200, answer
        if request.action == "DescribeInstanceTypeOfferings" and request.fields.get("LocationType") == "outpost":
            return 200, _offerings(request, cloud.offered)
        if request.action == "GetServiceQuota":
            return 200, json.dumps({"Quota": {"Value": cloud.quota}}).encode()
        if request.action == "DeleteNetworkInterface":  # moto takes it from its instance
            found = cloud.backend.enis.get(request.fields["NetworkInterfaceId"])
            if found is not None and found.instance is not None:
                return 400, _error("InvalidParameterValue", f"Network interface '{found.id}' is currently in use.")
        if request.action == "DescribeInstanceAttribute":
            return 200, _user_data(cloud.user_data.get(request.fields["InstanceId"], ""))
        if "UserData.Value" in request.fields:  # moto decodes it twice
            cloud.user_data[request.fields["InstanceId"]] = request.fields["UserData.Value"]
            return 200, f'<Response xmlns="{NAMESPACE}"><return>true</return></Response>'.encode()
        status, answer = self._ask_moto(environ)
        if status == 200:
            if token[1] and request.fields.get("DryRun") != "true":
                cloud.tokens[token] = request.fields, answer
            answer = self._amended(request, answer)
        return status, answer

    def _amended(self, request: Request, answer: bytes) -> bytes:
        cloud = self._cloud
        if request.action == "DescribeSubnets":
            for subnet, outpost in cloud.outposts.items():
                inner = f"<subnetId>{subnet}</subnetId>".encode()
                answer = answer.replace(inner, inner + f"<outpostArn>{outpost}</outpostArn>".encode())
        if request.action == "RunInstances":  # moto tags no interfaces, and gives each one address
            made = {each.decode() for each in _MADE.findall(answer)}
            for instance in (each for each in cloud.backend.all_instances() if each.id in made):
                for number, nic in enumerate(instance.nics.values(), start=1):
                    nic.add_tags(request.tags("network-interface"))
                    more = request.listed(f"NetworkInterface.{number}.PrivateIpAddresses", ".PrivateIpAddress")
                    nic.private_ip_addresses += [{"PrivateIpAddress": each, "Primary": False} for each in more]
        if request.action == "DescribeImages":
            answer = re.sub(rb"<bootMode>\w+", b"<bootMode>" + cloud.boot_mode.encode(), answer)
        if request.action == "DescribeInstanceStatus":
            answer = re.sub(rb"<status>\w+", b"<status>" + cloud.status.encode(), answer)
        if request.action in ("RunInstances", "CreateVolume") and cloud.hidden_looks:
            cloud.hidden |= dict.fromkeys((each.decode() for each in _MADE.findall(answer)), cloud.hidden_looks)
        if request.action in ("DescribeInstances", "DescribeVolumes") and cloud.hidden:
            return self._without_hidden(request, answer)
        return answer

    def _without_hidden(self, request: Request, answer: bytes) -> bytes:
        hidden = self._cloud.hidden
        asked = {*request.listed("InstanceId"), *request.listed("VolumeId")}
        kind = "instanceId" if request.action == "DescribeInstances" else "volumeId"
        tree = ElementTree.fromstring(answer)
        parents = {child: parent for parent in tree.iter() for child in parent}
        for tag in [each for each in tree.iter(f"{{{NAMESPACE}}}{kind}") if hidden.get(each.text or "", 0) > 0]:
            item = parents[tag]
            if any(each.tag.endswith("attachTime") for each in item) or parents[item].tag.endswith("attachmentSet"):
                continue
            hidden[tag.text or ""] -= 1
            if tag.text in asked:
                name = "InvalidInstanceID.NotFound" if kind == "instanceId" else "InvalidVolume.NotFound"
                raise _NotFoundError(name, tag.text or "")
            parents[item].remove(item)
        return ElementTree.tostring(tree)

    def _ask_moto(self, environ: dict[str, Any]) -> tuple[int, bytes]:
        told: list[int] = []

        def start(status: str, headers: list[tuple[str, str]], *_: object) -> Callable[[bytes], None]:
            told.append(int(status.split(maxsplit=1)[0]))
            return lambda _: None

        answer = b"".join(self._moto(environ, start))
        return told[0], answer


@contextlib.contextmanager
def _dropping(connection: socket.socket) -> Iterator[None]:
    try:
        yield
    except DropError:
        connection.shutdown(socket.SHUT_RDWR)
        raise


class _NotFoundError(Exception):
    """An object that can't be seen yet."""


def _answer(start: Callable[..., Any], status: int, body: bytes) -> list[bytes]:
    kind = "application/x-amz-json-1.1" if body.startswith(b"{") else "text/xml"
    start(f"{status} .", [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]


def _error(code: str, message: str) -> bytes:
    return (
        f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>"
        "<RequestID>r</RequestID></Response>"
    ).encode()


def _offerings(request: Request, offered: list[str]) -> bytes:
    wanted = {
        name: request.listed(f"Filter.{number}.Value")
        for number in (1, 2)
        if (name := request.fields.get(f"Filter.{number}.Name", ""))
    }
    known = [each for each in offered if each in wanted.get("instance-type", offered)]
    items = "".join(
        f"<item><instanceType>{each}</instanceType><locationType>outpost</locationType></item>" for each in known
    )
    return (
        f'<DescribeInstanceTypeOfferingsResponse xmlns="{NAMESPACE}"><instanceTypeOfferingSet>{items}'
        "</instanceTypeOfferingSet></DescribeInstanceTypeOfferingsResponse>"
    ).encode()


def _user_data(value: str) -> bytes:
    return (
        f'<DescribeInstanceAttributeResponse xmlns="{NAMESPACE}"><userData><value>{value}</value></userData>'
        "</DescribeInstanceAttributeResponse>"
    ).encode()


@contextlib.contextmanager
def running() -> Iterator[Cloud]:
    """A stand-in with nothing of an earlier one."""
    cloud = Cloud()
    get_backend("ec2").reset()
    server = make_server("127.0.0.1", 0, Recorder(cloud), True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    cloud.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield cloud
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
