"""The helper: a recovery host's instance, and what its agent is ordered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from drengine.control.messages import Answer, Verb
from drengine.failover.drivers.driver import LaunchRequest
from drengine.failover.drivers.ec2.calls import Calls
from drengine.failover.drivers.ec2.errors import EC2_SETUP
from drengine.failover.drivers.ec2.made import HOST, Resource, look_at_instance, state_of, tagged
from drengine.failover.drivers.ec2.settings import Ec2Settings
from drengine.failover.drivers.errors import LAUNCH_FAILED, LAUNCH_SETTINGS
from drengine.model.errors import DrengineError


def find_helper(calls: Calls, settings: Ec2Settings, host: str) -> Resource:
    """The running instance of a recovery host.

    Raises:
        DrengineError: EC2_SETUP, there is none.
    """
    if settings.helper:
        named, found = settings.helper, look_at_instance(calls, settings.helper)
    else:
        named = f"with the tag {HOST}={host}"
        running = [tagged(HOST, host), {"Name": "instance-state-name", "Values": ["running"]}]
        reservations = calls.every("DescribeInstances", "Reservations", Filters=running)
        found = next((each for reservation in reservations for each in reservation["Instances"]), None)
    if found is None or state_of(found) != "running":
        raise DrengineError(EC2_SETUP, f"there is no running helper instance {named}")
    return found


def order_helper(
    request: LaunchRequest, verb: Verb, arguments: Mapping[str, Any], say: Callable[[str], None] = lambda _: None
) -> Answer:
    """Have its agent do something.

    Raises:
        DrengineError: LAUNCH_SETTINGS, it can't be told; LAUNCH_FAILED with its words.
    """
    if request.order is None or not request.host:
        raise DrengineError(LAUNCH_SETTINGS, "driver ec2 needs `host`, a recovery host's name, and a broker")
    answer = request.order(verb, arguments, request.timeout_seconds, say)
    if not answer.ok:
        raise DrengineError(LAUNCH_FAILED, f"{request.host}: {answer.message}")
    return answer
