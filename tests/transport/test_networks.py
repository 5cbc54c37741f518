"""Data stays local (rule 7)."""

from __future__ import annotations

import logging
import socket
from typing import Any

import pytest

from drengine.model.errors import DrengineError
from drengine.transport import endpoints
from drengine.transport.endpoints import _check_plain, connect, serve
from drengine.transport.errors import OUTSIDE_DATA_NETWORK, PLAIN_REFUSED, UNREACHABLE
from drengine.transport.networks import DataNetworks, is_loopback

NETWORKS = DataNetworks.parse(["10.20.0.0/16", "192.168.7.0/24", "fd00:1::/64"])


@pytest.mark.parametrize(
    ("peer", "label"),
    [
        ("10.20.3.4", "10.20.0.0/16"),
        ("192.168.7.255", "192.168.7.0/24"),
        ("::ffff:10.20.3.4", "10.20.0.0/16"),
        ("fd00:1::5", "fd00:1::/64"),
        ("fd00:1::5%eth0", "fd00:1::/64"),
        ("127.0.0.1", "loopback"),
        ("127.9.9.9", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
    ],
)
def test_a_peer_inside_is_labelled_by_its_network(peer: str, label: str) -> None:
    assert NETWORKS.label(peer) == label


@pytest.mark.parametrize(
    "peer",
    [
        "10.21.0.1",
        "192.168.8.1",
        "::ffff:8.8.8.8",
        "fd00:2::1",
        "fe80::1%eth0",
        "0.0.0.0",
        "::",
        "::10.20.3.4",
    ],
)
def test_a_peer_outside_is_refused(peer: str) -> None:
    with pytest.raises(DrengineError) as caught:
        NETWORKS.label(peer)
    assert caught.value.kind is OUTSIDE_DATA_NETWORK


@pytest.mark.parametrize("text", ["10.20.0.1/16", "10.20.0.0/33", "example.com", "", "10.20.0.0/16 "])
def test_what_is_no_network_is_no_network(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        DataNetworks.parse([text])


def test_loopback_is_all_of_it_and_nothing_else() -> None:
    assert is_loopback("127.255.255.254")
    assert not is_loopback("128.0.0.1")
    assert not is_loopback("::2")
    assert not is_loopback("localhost"), "it may lead anywhere"
    assert not is_loopback("outpost.example")


async def test_an_agent_sends_nothing_outside_the_data_networks() -> None:
    """192.0.2.1 (for documentation, RFC 5737) is not even tried: the refusal is at once."""
    with pytest.raises(DrengineError) as caught:
        await connect("192.0.2.1", 9, networks=NETWORKS, tls=None, allow_plain=True)
    assert caught.value.kind is OUTSIDE_DATA_NETWORK


async def test_plain_tcp_to_another_machine_is_refused() -> None:
    with pytest.raises(DrengineError) as caught:
        await connect("10.20.1.1", 9, networks=NETWORKS, tls=None)
    assert caught.value.kind is PLAIN_REFUSED


def test_plain_tcp_that_was_allowed_is_logged_each_time(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "drengine.transport"):
        for _ in range(2):
            _check_plain("10.20.1.1", None, True)
        _check_plain("127.0.0.1", None, False)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "WITHOUT encryption" in caplog.text


async def test_a_connection_over_which_nothing_is_said_warns_of_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "is_loopback", lambda _: False)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        await endpoints.reach("127.0.0.1", listening.getsockname()[1], NETWORKS)
    assert not caplog.records


async def test_a_name_leads_only_to_its_addresses_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with an outer and an inner address: the outer one is passed over."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def resolve(*_: Any, **__: Any) -> list[Any]:
            return [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port)),
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
            ]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        stream = await connect("target.example", port, networks=DataNetworks(), tls=None)
        assert stream.peer == "127.0.0.1"
        assert stream.network == "loopback"
        stream.abort()


async def test_a_target_that_is_not_there_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(DrengineError) as caught:
        await connect("127.0.0.1", port, networks=DataNetworks(), tls=None)
    assert caught.value.kind is UNREACHABLE


async def test_a_taken_address_can_not_be_listened_on() -> None:
    async def handler(_: object) -> None: ...

    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(DrengineError, match="listened on") as caught:
            await serve("127.0.0.1", taken.getsockname()[1], handler, networks=DataNetworks(), tls=None)
        assert caught.value.kind is UNREACHABLE
