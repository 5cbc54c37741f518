"""One dynamic update of a record set (RFC 2136), signed with TSIG when a key is given."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dns.query
import dns.rcode
import dns.tsigkeyring
import dns.update

from drengine.failover.steps.errors import COMMAND_FAILED
from drengine.model.errors import DrengineError

KEY_BYTES_MAX = 64 << 10
_KEY = re.compile(r'key\s+"?([^"\s{]+)"?\s*\{(.*?)\}', re.S)
_FIELD = re.compile(r'(algorithm|secret)\s+"?([^";\s]+)"?\s*;')


def send_update(
    server: str,
    zone: str,
    name: str,
    type: str,
    ttl: int,
    values: Sequence[str],
    *,
    key_file: Path | None,
    seconds: float,
) -> str:
    """Replace a record set; the server's answer as a word, NOERROR if it has taken the update.

    Args:
        server: address, with :PORT if it is not 53.
        zone, name, type, ttl, values: the record set.
        key_file: a TSIG key as BIND writes it.
        seconds: how long it may take.

    Raises:
        DrengineError: COMMAND_FAILED, the key can't be read.
        OSError, dns.exception.DNSException: the server was not reached, or did not answer so.
    """
    update = dns.update.UpdateMessage(zone, **(_read_key(key_file) if key_file else {}))
    update.delete(name, type)
    for value in values:
        update.add(name, ttl, type, value)
    host, port = _address(server)
    address = str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
    return dns.rcode.to_text(dns.query.tcp(update, address, timeout=seconds, port=port).rcode())


def _read_key(path: Path) -> dict[str, Any]:
    """A TSIG key file as BIND's tsig-keygen writes it, as dnspython wants it; no error tells the secret."""
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


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if colon and port.isdigit() and (":" not in host or host.startswith("[")):
        return host.strip("[]"), int(port)
    return text.strip("[]"), 53
