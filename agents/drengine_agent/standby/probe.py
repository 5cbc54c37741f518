"""Asking a workload of this host from inside its own network."""

from __future__ import annotations

from drengine.control.probes import Mismatch, ProbeOrder, Seen, ask_http, ask_tcp
from drengine.linux.namespaces import in_network
from drengine.model.errors import DrengineError
from drengine.transport.web import Deadline
from drengine_agent.standby.errors import STANDBY_FAILED, STANDBY_SETTINGS
from drengine_agent.standby.workload import Workload


def probe(order: ProbeOrder, workload: Workload) -> Seen:
    """Ask once; blocks.

    Raises:
        DrengineError: STANDBY_FAILED, it did not pass; STANDBY_SETTINGS, the order says not how to ask.
    """
    if order.command:
        ended = workload.run_inside(order.command, order.seconds)
        if not ended.ok:
            why = f"took longer than {order.seconds:g} s" if ended.timed_out else f"ended with {ended.code}"
            raise DrengineError(STANDBY_FAILED, f"{order.command[0]} {why}: {ended.output}".rstrip(": "))
        return Seen(f"{order.command[0]} ended well", ended.output)
    deadline = Deadline(order.seconds)
    try:
        if order.http is not None:
            http = order.http
            return in_network(workload.network, lambda: ask_http(http, deadline))
        if order.tcp is not None:
            tcp = order.tcp
            return in_network(workload.network, lambda: ask_tcp(tcp, deadline))
    except (Mismatch, OSError, ValueError) as error:
        raise DrengineError(STANDBY_FAILED, str(error) or type(error).__name__) from error
    raise DrengineError(STANDBY_SETTINGS, "neither a command nor http nor tcp is asked for")
