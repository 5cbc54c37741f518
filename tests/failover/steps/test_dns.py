"""A dynamic DNS update against a small server that checks signatures, as BIND would."""

from __future__ import annotations

import base64
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import dns.tsigkeyring
import dns.update
import pytest

from drengine.failover.steps.dns import DnsStep
from drengine.failover.steps.kinds import step_kinds
from tests.failover.steps.context import context, planned

KINDS = step_kinds()

SECRET = base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()


class Server:
    """Accepts one signed update after the other over TCP and keeps what they said."""

    def __init__(self) -> None:
        self.updates: list[dns.message.Message] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _serve(self) -> None:
        ring = dns.tsigkeyring.from_text({"move.": SECRET})
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            with peer:
                (length,) = struct.unpack("!H", peer.recv(2, socket.MSG_WAITALL))
                wire = peer.recv(length, socket.MSG_WAITALL)
                try:
                    asked = dns.message.from_wire(wire, keyring=ring)
                    answer = dns.message.make_response(asked)
                    if not asked.had_tsig:
                        answer.set_rcode(dns.rcode.REFUSED)
                    else:
                        self.updates.append(asked)
                        answer.use_tsig(ring)
                except Exception:  # noqa: BLE001 - a bad signature
                    answer = dns.message.make_response(dns.message.from_wire(wire, keyring=False, ignore_trailing=True))
                    answer.set_rcode(dns.rcode.NOTAUTH)
                said = answer.to_wire()
                peer.sendall(struct.pack("!H", len(said)) + said)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def change(server: Server, key_file: Path | None) -> dict[str, Any]:
    return {
        "dns": {
            "server": server.address,
            "zone": "example.test",
            "name": "shop",
            "ttl": 30,
            "values": ["${shop.address}"],
            "key_file": str(key_file or ""),
        }
    }


LAUNCHED = {"launch:shop": {"details": {"address": "192.0.2.7"}}}


def key(folder: Path, secret: str = SECRET) -> Path:
    path = folder / "move.key"
    path.write_text(f'key "move." {{\n\talgorithm hmac-sha256;\n\tsecret "{secret}";\n}};\n')
    return path


async def test_a_signed_update_replaces_the_record(server: Server, tmp_path: Path) -> None:
    step = planned(KINDS["dns"], change(server, key(tmp_path)))
    result = await DnsStep().act(step, context(results=LAUNCHED))
    assert result.ok, result.message
    told = server.updates[0].to_text()
    assert "shop.example.test. 30 IN A 192.0.2.7" in told or "shop 30 IN A 192.0.2.7" in told
    assert "ANY A" in told  # the old records are deleted by the same update


async def test_an_unsigned_update_is_refused_and_says_so(server: Server) -> None:
    result = await DnsStep().act(planned(KINDS["dns"], change(server, None)), context(results=LAUNCHED))
    assert not result.ok
    assert "REFUSED" in result.message


@pytest.mark.fault(59)
async def test_a_broken_key_file_fails_without_showing_its_secret(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "bad.key"
    path.write_text(f"secret {SECRET}")
    for file in (path, tmp_path / "missing"):
        result = await DnsStep().act(planned(KINDS["dns"], change(server, file)), context(results=LAUNCHED))
        assert not result.ok
        assert SECRET not in repr(result)


async def test_a_server_that_does_not_answer_is_a_failure(tmp_path: Path) -> None:
    settings = {"dns": {"server": "127.0.0.1:9", "zone": "example.test", "name": "shop", "values": ["192.0.2.1"]}}
    result = await DnsStep().act(planned(KINDS["dns"], settings, timeout_seconds=2), context())
    assert not result.ok
