"""Moving a name to the recovery side by a dynamic update (RFC 2136), signed with TSIG when a key is given."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from drengine.failover.steps.errors import COMMAND_FAILED
from drengine.failover.steps.step import PlannedStep, StepContext, StepKind, StepResult
from drengine.failover.steps.texts import filled, launched_details
from drengine.model.errors import DrengineError

KEY_BYTES_MAX = 64 << 10
_KEY = re.compile(r'key\s+"?([^"\s{]+)"?\s*\{(.*?)\}', re.S)
_FIELD = re.compile(r'(algorithm|secret)\s+"?([^";\s]+)"?\s*;')


class DnsStep:
    """Replaces a record set. Doing it twice gives the same records."""

    kind: ClassVar[StepKind] = StepKind.DNS

    async def check(self, step: PlannedStep, context: StepContext) -> StepResult | None:
        """See StepHandler."""
        return None

    async def act(self, step: PlannedStep, context: StepContext) -> StepResult:
        """See StepHandler."""
        settings = dict(step.settings["dns"])
        details = launched_details(context)
        settings["values"] = [filled(value, details) for value in settings["values"]]
        told = f"{settings['name']} {settings.get('type', 'A')} {' '.join(settings['values'])}"
        try:
            answer = await asyncio.to_thread(_update, settings, step.timeout_seconds)
        except DrengineError as error:
            return StepResult(False, error.message, error.kind.id)
        except Exception as error:  # noqa: BLE001 - dnspython has a dozen kinds of failure; all mean: not changed
            return StepResult(False, f"{told}: {type(error).__name__}: {error}", COMMAND_FAILED.id)
        if answer != "NOERROR":
            return StepResult(False, f"{told}: the server answered {answer}", COMMAND_FAILED.id)
        return StepResult(True, told, data={"records": settings["values"]})


def _update(settings: Mapping[str, Any], seconds: float) -> str:
    import dns.query  # noqa: PLC0415 - only runbooks with DNS changes pay for it
    import dns.rcode  # noqa: PLC0415
    import dns.update  # noqa: PLC0415

    key = read_key(Path(settings["key_file"])) if settings.get("key_file") else {}
    update = dns.update.UpdateMessage(settings["zone"], **key)
    update.delete(settings["name"], settings.get("type", "A"))
    for value in settings["values"]:
        update.add(settings["name"], settings.get("ttl", 60), settings.get("type", "A"), value)
    host, port = _server(settings["server"])
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
