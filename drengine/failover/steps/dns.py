"""Moving a name to the recovery side by a dynamic update (RFC 2136), signed with TSIG when a key is given."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Annotated

import msgspec

from drengine.failover.needs import Need, ReadableFile
from drengine.failover.runbook.findings import shown
from drengine.failover.runbook.sense import Sense
from drengine.failover.steps.errors import COMMAND_FAILED
from drengine.failover.steps.step import ActionKind, PlannedStep, StepContext, StepResult
from drengine.failover.steps.texts import filled, launched_details
from drengine.model.errors import DrengineError

TTL_MAX = 2**31 - 1
_TYPE = re.compile(r"[A-Z][A-Z0-9]{0,9}", re.ASCII)


class DnsChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """RFC 2136 update of one record set."""

    server: str
    """Address of the authoritative server, with :PORT if it is not 53."""
    zone: str
    """Zone that is updated."""
    name: str
    """Name inside the zone."""
    type: Annotated[str, msgspec.Meta(extra={"what": "a record type", "example": "A"})] = "A"
    """Record type."""
    ttl: Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 0, "maximum": TTL_MAX})] = 60
    """Seconds."""
    values: Annotated[list[str], msgspec.Meta(extra_json_schema={"minItems": 1})]
    """New values; ${SOURCE.KEY} is filled in."""
    key_file: str = ""
    """TSIG key, as BIND writes it."""


class Records(msgspec.Struct, frozen=True):
    """The values to which the name points now."""

    records: list[str] = []


class DnsStep(ActionKind[DnsChange, Records]):
    """Replaces a record set. Doing it twice gives the same records."""

    name = "dns"
    help = "Move a name."
    ends_outage = True
    by_hand = True

    def title(self, source: str, settings: DnsChange) -> str:
        return f"point {settings.name} to {', '.join(settings.values)}"

    def examine(self, settings: DnsChange, sense: Sense) -> None:
        for key in ("server", "zone", "name"):
            sense.filled(getattr(settings, key), key)
        if not _TYPE.fullmatch(settings.type):
            sense.error("bad-value", f"{shown(settings.type)} is no record type", "A, AAAA, CNAME, ...", "type")
        sense.count(settings.ttl, TTL_MAX, "ttl")
        if not settings.values:
            sense.error("bad-value", "there is no value", "Name at least one address.", "values")
        sense.references(settings.values, "values")
        sense.no_way_up(settings.key_file, "key_file")

    def needs(self, settings: DnsChange) -> tuple[Need, ...]:
        return (ReadableFile(settings.key_file),) if settings.key_file else ()

    async def act(self, step: PlannedStep[DnsChange], context: StepContext) -> StepResult[Records]:
        details = launched_details(context)
        values = [filled(value, details) for value in step.settings.values]
        change = msgspec.structs.replace(step.settings, values=values)
        made = f"{change.name} {change.type} {' '.join(values)}"
        try:
            answer = await asyncio.to_thread(_send, change, step.timeout_seconds)
        except DrengineError as error:
            return StepResult(False, error.message, error.kind.id)
        except Exception as error:  # noqa: BLE001 - dnspython has a dozen kinds of failure; all mean: not changed
            return StepResult(False, f"{made}: {type(error).__name__}: {error}", COMMAND_FAILED.id)
        if answer != "NOERROR":
            return StepResult(False, f"{made}: the server answered {answer}", COMMAND_FAILED.id)
        return StepResult(True, made, data=Records(values))


def _send(change: DnsChange, seconds: float) -> str:
    from drengine.failover.steps.dns_update import send_update  # noqa: PLC0415 - only runs that move names pay for it

    key_file = Path(change.key_file) if change.key_file else None
    records = (change.name, change.type, change.ttl, change.values)
    return send_update(change.server, change.zone, *records, key_file=key_file, seconds=seconds)


DNS = DnsStep()
