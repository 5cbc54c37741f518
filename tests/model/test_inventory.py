"""What a source tells of itself is judged value by value: it may have been taken over."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drengine.model.inventory import (
    DOCUMENT_BYTES_MAX,
    ENTRIES_MAX,
    BadInventory,
    Interface,
    Inventory,
    faults,
    pack_inventory,
    parse_inventory,
)
from tests.inventories import SERVER

PLAIN = json.loads(pack_inventory(SERVER))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where each value of a document stands."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(each for key, inner in items for each in places(inner, (*path, key)))]


def with_value(path: tuple[Any, ...], value: Any) -> bytes:
    """The server's document with another value at a place."""
    changed = json.loads(json.dumps(PLAIN))
    if not path:
        return json.dumps(value).encode()
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(changed).encode()


def test_what_an_agent_tells_comes_back_as_it_was() -> None:
    assert parse_inventory(pack_inventory(SERVER)) == SERVER
    assert parse_inventory(b'{"taken_ns": 1, "of_a_later_version": [{}]}') == Inventory(taken_ns=1)


HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=60),
    st.sampled_from(
        ["a\nb", "\x1b[2J", "../../etc/shadow", "/dev/sda", "x" * 2000, "٣", "\u202e", "10.0.0.5/33", "1e999", "\ud800"]
    ),
    st.lists(st.integers(), max_size=3),
    st.just([PLAIN["listeners"][0]] * (ENTRIES_MAX + 1)),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)


@given(path=st.sampled_from(places(PLAIN)), value=HOSTILE)
def test_any_value_in_any_place_is_refused_or_harmless(path: tuple[Any, ...], value: Any) -> None:
    try:
        found = parse_inventory(with_value(path, value))
    except BadInventory as error:
        assert str(error)
        return
    assert not list(faults(found))
    assert "\n" not in repr(found) and len(pack_inventory(found)) <= DOCUMENT_BYTES_MAX


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_an_inventory(document: bytes) -> None:
    try:
        assert isinstance(parse_inventory(document), Inventory)
    except BadInventory as error:
        assert str(error)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (b" " * (DOCUMENT_BYTES_MAX + 1), "bytes are over"),
        (b'{"taken_ns":1,"later":' + b"[" * 60_000, "does not decode"),
        (with_value(("disks", 0, "device"), "../sda"), "no name of a device"),
        (with_value(("root_chain", 1), "/dev/sda"), "no name of a device"),
        (with_value(("interfaces", 0, "mac"), "3C:EC"), "no address of a network card"),
        (with_value(("interfaces", 0, "addresses"), ["10.0.0.5/40"]), "no interface"),
        (with_value(("routes", 0, "via"), "gateway"), "no address"),
        (with_value(("listeners", 0, "port"), 70_000), "no port"),
        (with_value(("boot_mode",), "coreboot"), "no way to boot"),
        (with_value(("cpus",), -1), "not from 0"),
        (with_value(("hostname",), "web\n1"), "control characters"),
        (with_value(("os_name",), "x" * 1025), "more than 1024 bytes"),
        (with_value(("fstab",), [PLAIN["fstab"][0]] * 257), "more than 256 entries"),
    ],
)
def test_what_is_not_possible_is_named(document: bytes, said: str) -> None:
    with pytest.raises(BadInventory, match=said):
        parse_inventory(document)


def test_parts_are_judged_as_well() -> None:
    assert not list(faults(Interface(name="eth0", addresses=("2001:db8::5/64",))))
    assert list(faults(Interface(name="eth0/1"))) == ["'eth0/1' is no name of a device"]
