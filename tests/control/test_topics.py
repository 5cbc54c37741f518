"""Names on their way into topics, and topics on their way in: nothing but plain names passes (fault 52)."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from drengine.control.config import BrokerOptions
from drengine.control.messages import PartyKind
from drengine.control.topics import Leaf, Topic, check_party_name, everyone, parse_topic
from drengine.model.errors import DrengineError

SLASHES_MAX = 7
TOPIC_BYTES_MAX = 256
PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")


@pytest.mark.fault(52)
@pytest.mark.parametrize(
    "name",
    [
        "",
        "#",
        "+",
        "a/b",
        "../a",
        "a..b",
        "a\0b",
        "a\n",
        "A",
        "ä",
        "$sys",
        "a b",
        "-a",
        "." * 3,
        "a" * 64,
        "orchestrator",
    ],
)
def test_a_party_cannot_bear_a_name_that_would_be_more_than_a_name(name: str) -> None:
    with pytest.raises(DrengineError) as raised:
        Topic("main", PartyKind.AGENT, name, Leaf.COMMAND)
    assert raised.value.kind.id == "bad-name"
    with pytest.raises(DrengineError):
        check_party_name(name)


@pytest.mark.fault(52)
@pytest.mark.parametrize("site", ["", "+", "#", "a/b", "main/agent/shop"])
def test_a_site_is_a_plain_name_too(site: str) -> None:
    with pytest.raises(DrengineError):
        everyone(site, Leaf.REPORT)
    with pytest.raises(DrengineError):
        Topic(site, PartyKind.AGENT, "shop", Leaf.COMMAND)


@pytest.mark.fault(52)
@given(
    st.text(max_size=300)
    | st.lists(
        st.sampled_from(["drengine", "main", "agent", "orchestrator", "shop", "+", "#", "..", "", "command"])
    ).map("/".join)
)
@example("drengine/main/agent/shop/command")
@example("drengine/main/agent/+/command")
@example("drengine/main/agent/orchestrator/command")
@example("drengine/main/agent/shop/command/")
@example("drengine/main/orchestrator/+/presence")
def test_what_arrives_on_any_topic_is_ours_and_plain_or_nothing(text: str) -> None:
    topic = parse_topic(text)
    if topic is not None:
        assert str(topic) == text
        assert set(topic.name + topic.site) <= PLAIN


def test_topics_fit_into_what_aws_iot_core_takes() -> None:
    longest = str(Topic("s" * 63, PartyKind.ORCHESTRATOR, "n" * 63, Leaf.PRESENCE))
    assert longest.count("/") <= SLASHES_MAX
    assert len(longest.encode()) <= TOPIC_BYTES_MAX
    assert everyone("main", Leaf.REPORT) == "drengine/main/+/+/report"


@pytest.mark.parametrize(
    ("given_options", "message"),
    [
        ({"certificate": "a"}, "certificate, key and ca together"),
        ({"address": "unix:/run/x"}, "a host and a port"),
        ({"address": "10.0.0.1:1883"}, "beyond loopback needs"),
        ({"address": "broker.example:1883"}, "beyond loopback needs"),
        ({"keepalive": "0s"}, "1s to 20m"),
        ({"site": "a/b"}, "not a valid name"),
        ({"adress": "127.0.0.1:1"}, "did you mean address"),
    ],
)
def test_mistakes_in_the_brokers_section_are_named(given_options: dict[str, str], message: str) -> None:
    from drengine.config import parse

    with pytest.raises(DrengineError, match=message):
        parse(BrokerOptions, given_options).check("[control]")


@pytest.mark.parametrize("address", ["127.0.0.1:1883", "localhost:1883", "[::1]:1883"])
def test_loopback_needs_no_certificates(address: str) -> None:
    from drengine.config import parse

    parse(BrokerOptions, {"address": address}).check("[control]")
    parse(BrokerOptions, {"address": "10.0.0.1:1883", "allow_plain": True}).check("[control]")
