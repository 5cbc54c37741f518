"""Moving a name to the recovery side by a dynamic update (RFC 2136), signed with TSIG when a key is given."""

from __future__ import annotations

import asyncio
import re
import socket
from pathlib import Path
from typing import Annotated, Any

import msgspec

from drengine.failover.runbook.findings import shown
from drengine.failover.runbook.sense import Sense
from drengine.failover.steps.errors import COMMAND_FAILED
from drengine.failover.steps.step import ActionKind, PlannedStep, StepContext, StepResult
from drengine.failover.steps.texts import filled, launched_details
from drengine.model.errors import DrengineError

KEY_BYTES_MAX = 64 << 10
TTL_MAX = 2**31 - 1
_TYPE = re.compile(r"[A-Z][A-Z0-9]{0,9}", re.ASCII)
_KEY = re.compile(r'key\s+"?([^"\s{]+)"?\s*\{(.*?)\}', re.S)
_FIELD = re.compile(r'(algorithm|secret)\s+"?([^";\s]+)"?\s*;')


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
    settings_type = DnsChange
    result_type = Records
    ends_outage = True
    by_hand = True

    def title(self, source: str, settings: DnsChange) -> str:
        """See StepKind."""
        return f"point {settings.name} to {', '.join(settings.values)}"

    def examine(self, settings: DnsChange, sense: Sense) -> None:
        """See ActionKind."""
        for key in ("server", "zone", "name"):
            sense.filled(getattr(settings, key), key)
        if not _TYPE.fullmatch(settings.type):
            sense.error("bad-value", f"{shown(settings.type)} is no record type", "A, AAAA, CNAME, ...", "type")
        sense.count(settings.ttl, TTL_MAX, "ttl")
        if not settings.values:
            sense.error("bad-value", "there is no value", "Name at least one address.", "values")
        sense.references(settings.values, "values")
        sense.no_way_up(settings.key_file, "key_file")

    async def act(self, step: PlannedStep[DnsChange], context: StepContext) -> StepResult[Records]:
        """See StepKind."""
        details = launched_details(context)
        values = [filled(value, details) for value in step.settings.values]
        change = msgspec.structs.replace(step.settings, values=values)
        made = f"{change.name} {change.type} {' '.join(values)}"
        try:
            answer = await asyncio.to_thread(_update, change, step.timeout_seconds)
        except DrengineError as error:
            return StepResult(False, error.message, error.kind.id)
        except Exception as error:  # noqa: BLE001 - dnspython has a dozen kinds of failure; all mean: not changed
            return StepResult(False, f"{made}: {type(error).__name__}: {error}", COMMAND_FAILED.id)
        if answer != "NOERROR":
            return StepResult(False, f"{made}: the server answered {answer}", COMMAND_FAILED.id)
        return StepResult(True, made, data=Records(values))


def _update(change: DnsChange, seconds: float) -> str:
    import dns.query  # noqa: PLC0415 - only runbooks with DNS changes pay for it
    import dns.rcode  # noqa: PLC0415
    import dns.update  # noqa: PLC0415

    key = read_key(Path(change.key_file)) if change.key_file else {}
    update = dns.update.UpdateMessage(change.zone, **key)
    update.delete(change.name, change.type)
    for value in change.values:
        update.add(change.name, change.ttl, change.type, value)
    host, port = _server(change.server)
    address = str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
    return dns.rcode.to_text(dns.query.tcp(update, address, timeout=seconds, port=port).rcode())


def read_key(path: Path) -> dict[str, Any]:
    """A TSIG key file as BIND's tsig-keygen writes it, as dnspython wants it.

    Raises:
        DrengineError: COMMAND_FAILED; the secret is never part of the message.
    """
    import dns.tsigkeyring  # noqa: PLC0415

    try:
        text = path.read_bytes()[:KEY_BYTES_MAX].decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DrengineError(COMMAND_FAILED, f"key file {path}: {type(error).__name__}") from error
    found = _KEY.search(text)
    fields = dict(_FIELD.findall(found[2])) if found else {}
    if found is None or "secret" not in fields:
        raise DrengineError(COMMAND_FAILED, f"key file {path} holds no TSIG key")
    ring = dns.tsigkeyring.from_text({found[1]: fields["secret"]})
    return {"keyring": ring, "keyalgorithm": fields.get("algorithm", "hmac-sha256")}


def _server(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if colon and port.isdigit() and (":" not in host or host.startswith("[")):
        return host.strip("[]"), int(port)
    return text.strip("[]"), 53


DNS = DnsStep()
