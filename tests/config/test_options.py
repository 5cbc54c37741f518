"""What a person writes into a configuration file, and what they are told when it is wrong."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drengine.config import (
    ADDRESS,
    BAD_CONFIG,
    COUNT,
    DURATION,
    FLAG,
    NETWORKS,
    RATE,
    SIZE,
    TEXT,
    Address,
    choice,
    example,
    load,
    option,
    parse,
    parse_duration,
    parse_size,
    reference,
    section,
    tables,
)
from drengine.model.errors import DrengineError


@dataclass(frozen=True)
class Inner:
    """[inner]"""

    size: int = option(SIZE, default=1 << 20, help="A size.")
    mode: str = option(choice("fast", "safe"), default="safe", help="A mode.")


@dataclass(frozen=True)
class Disk:
    """[[disk]]"""

    name: str = option(TEXT, help="Its name.", example="data")


@dataclass(frozen=True)
class Outer:
    """All."""

    listen: Address = option(ADDRESS, help="Where.", example=Address("127.0.0.1", 7440))
    wait: float = option(DURATION, default=5.0, help="How long.")
    networks: tuple[str, ...] = option(NETWORKS, default=(), help="Which.")
    on: bool = option(FLAG, default=False, help="Whether.")
    count: int = option(COUNT, default=2, help="How many.")
    rate: int = option(RATE, default=20 << 20, help="How fast.")
    inner: Inner = section(Inner, help="More.")
    disk: tuple[Disk, ...] = tables(Disk, help="Disks.")


def test_values_are_read_in_the_units_people_write() -> None:
    options = parse(
        Outer,
        {
            "listen": "[::1]:80",
            "wait": "1.5m",
            "networks": ["10.0.0.0/8"],
            "rate": "1GiB/s",
            "inner": {"size": "64MiB"},
            "disk": [{"name": "a"}, {"name": "b"}],
        },
    )
    assert options.listen == Address("::1", 80)
    assert (options.wait, options.rate, options.inner.size) == (90.0, 1 << 30, 64 << 20)
    assert [disk.name for disk in options.disk] == ["a", "b"]
    assert options.inner.mode == "safe"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "option listen is missing"),
        ({"listen": "a:1", "lisen": 1}, "unknown option lisen; did you mean listen?"),
        ({"listen": "a:1", "inner": {"sise": 1}}, "did you mean inner.size?"),
        ({"listen": "a"}, "write HOST:PORT"),
        ({"listen": "a:99999"}, "no address"),
        ({"listen": "unix:" + "x" * 200}, "107 bytes"),
        ({"listen": "a:1", "wait": "5 parsecs"}, "no duration"),
        ({"listen": "a:1", "wait": 5}, "text"),
        ({"listen": "a:1", "on": "yes"}, "true or false"),
        ({"listen": "a:1", "count": -1}, "whole number from 0"),
        ({"listen": "a:1", "count": True}, "whole number from 0"),
        ({"listen": "a:1", "networks": ["10.0.0.1/8"]}, "host bits"),
        ({"listen": "a:1", "networks": "10.0.0.0/8"}, "list"),
        ({"listen": "a:1", "rate": "20MiB"}, "no rate"),
        ({"listen": "a:1", "inner": 3}, "a table is needed"),
        ({"listen": "a:1", "inner": {"mode": "slow"}}, "one of fast, safe"),
        ({"listen": "a:1", "disk": []}, "one or more tables"),
        ({"listen": "a:1", "disk": [{"name": "a\x00"}]}, "disk[0].name"),
    ],
)
def test_a_mistake_is_named_with_its_place(values: dict[str, object], said: str) -> None:
    with pytest.raises(DrengineError) as caught:
        parse(Outer, values, where="file.toml")
    assert caught.value.kind is BAD_CONFIG
    assert said in caught.value.message
    assert "file.toml" in caught.value.message


@pytest.mark.parametrize("content", [b"listen = ", b"\xff\xfe", b"a" * (2 << 20)])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(content)
    with pytest.raises(DrengineError) as caught:
        load(Outer, path)
    assert caught.value.kind is BAD_CONFIG


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DrengineError, match="No such file"):
        load(Outer, tmp_path / "none.toml")


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('listen = "a:1"\nwait = "1s"\n[[disk]]\nname = "a"\n')
    assert load(Outer, path, overrides={"wait": "2s"}).wait == 2.0


def test_the_example_is_a_file_that_loads_with_every_default(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(example(Outer))
    assert load(Outer, path) == parse(Outer, {"listen": "127.0.0.1:7440", "disk": [{"name": "data"}]})
    uncommented = example(Outer).replace("# wait =", "wait =").replace("# size =", "size =")
    assert tomllib.loads(uncommented)["wait"] == "5s"


def test_the_reference_has_every_option() -> None:
    page = reference(Outer)
    for name in ("listen", "wait", "inner.size", "inner.mode", "disk.name"):
        assert f"`{name}`" in page


@given(st.integers(0, 1 << 20), st.sampled_from([("", 1), ("B", 1), ("KiB", 1 << 10), ("MB", 10**6), ("GiB", 1 << 30)]))
def test_sizes_are_read_exactly(number: int, unit: tuple[str, int]) -> None:
    assert parse_size(f"{number}{unit[0]}") == number * unit[1]


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_duration_or_is_refused(text: str) -> None:
    for read in (parse_size, parse_duration):
        try:
            assert read(text) >= 0
        except ValueError as error:
            assert "write for example" in str(error)
