"""What a site decides about its sources: which pattern counts, what is refused, and that the file is old or new."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drengine.model.errors import DrengineError
from drengine.policy.errors import BAD_POLICY, POLICY_UNUSABLE
from drengine.policy.kept import FILE, Policy, PolicyFile, Retired
from drengine.policy.settings import SETTINGS, check_pattern, check_setting, decided
from drengine.policy.told import digest_of, told_to

NAMES = st.text("ab*", min_size=1, max_size=4)


@pytest.mark.parametrize("name", SETTINGS)
def test_each_settings_example_is_possible(name: str) -> None:
    check_setting(name, SETTINGS[name].example)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("bandwidth", "fast", "bandwidth: 'fast' is not a rate"),
        ("bandwidth", "0MiB/s", "would stop replication"),
        ("cuts", "sometimes", "cuts: sometimes: possible are auto"),
        ("point_interval", "0s", "point_interval: 0.001 to 3600 s"),
        ("point_interval", "soon", "point_interval"),
        ("retention", "all for ever", "retention"),
        ("ring", "The First", "ring"),
        ("colour", "red", "there is no setting 'colour'"),
    ],
)
def test_a_value_that_is_not_possible_is_refused_when_it_is_set(name: str, value: str, said: str) -> None:
    with pytest.raises(DrengineError) as refused:
        check_setting(name, value)
    assert refused.value.kind is BAD_POLICY
    assert said in refused.value.message


@pytest.mark.parametrize("pattern", ["", "Shop", "shop/../x", "*" * 200, "-x", "shop-[ab]", "shop\n"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(DrengineError) as refused:
        check_pattern(pattern)
    assert refused.value.kind is BAD_POLICY


def test_the_pattern_that_says_most_counts() -> None:
    rules = {
        "*": {"bandwidth": "1MiB/s", "cuts": "quiet", "ring": "rest"},
        "shop-*": {"bandwidth": "2MiB/s", "ring": "early"},
        "shop-1*": {"bandwidth": "3MiB/s"},
        "shop-12": {"ring": "canary"},
    }
    found = decided(rules, "shop-12")
    assert {name: (each.value, each.by) for name, each in found.items()} == {
        "bandwidth": ("3MiB/s", "shop-1*"),
        "cuts": ("quiet", "*"),
        "ring": ("canary", "shop-12"),
    }
    assert told_to(found) == {"bandwidth": "3MiB/s", "cuts": "quiet"}, "the ring is the site's own affair"
    assert decided(rules, "web")["bandwidth"].value == "1MiB/s"


@given(st.dictionaries(NAMES, st.just({"ring": "x"})), st.text("ab", min_size=1, max_size=4))
def test_a_sources_own_name_always_counts_and_the_order_of_setting_never_does(
    rules: dict[str, dict[str, str]], source: str
) -> None:
    forth, back = decided(rules, source), decided(dict(reversed(rules.items())), source)
    assert forth == back
    with_own = decided({**rules, source: {"ring": "own"}}, source)
    assert with_own["ring"].value == "own"


def test_nothing_decided_has_no_name_and_each_difference_another_one() -> None:
    assert digest_of({}) == ""
    assert len({digest_of(each) for each in ({"a": "1"}, {"a": "2"}, {"b": "1"}, {"a": "1", "b": "1"})}) == 4


def test_what_is_kept_is_read_by_whoever_has_the_file_open(tmp_path: Path) -> None:
    one, other = PolicyFile(tmp_path), PolicyFile(tmp_path)
    assert other.read() == Policy()
    with one.changing() as policy:
        one.keep(msgspec.structs.replace(policy, version=1, rules={"*": {"cuts": "quiet"}}))
    assert other.read().rules == {"*": {"cuts": "quiet"}}
    with other.changing() as policy:
        other.keep(msgspec.structs.replace(policy, retired={"shop": Retired(5, "bob", ("ab",))}))
    assert one.read().retired["shop"].serials == ("ab",)
    assert one.read().version == 1


def test_a_setting_of_a_newer_version_stays_and_is_told_nobody(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"version": 3, "rules": {"*": {"novel": "1", "cuts": "quiet"}}}')
    file = PolicyFile(tmp_path)
    with file.changing() as policy:
        file.keep(msgspec.structs.replace(policy, version=4))
    assert file.read().rules["*"]["novel"] == "1"
    assert told_to(decided(file.read().rules, "shop")) == {"cuts": "quiet"}


def test_writers_take_turns(tmp_path: Path) -> None:
    def change() -> None:
        file = PolicyFile(tmp_path)
        for _ in range(20):
            with file.changing() as policy:
                file.keep(msgspec.structs.replace(policy, version=policy.version + 1))

    threads = [threading.Thread(target=change) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert PolicyFile(tmp_path).read().version == 80


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "x"}', "\x80"])
def test_a_damaged_file_is_never_taken_for_an_empty_one(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_bytes(content.encode("latin-1"))
    file = PolicyFile(tmp_path)
    for _ in range(2):
        with pytest.raises(DrengineError) as failed:
            file.read()
        assert failed.value.kind is POLICY_UNUSABLE
    with pytest.raises(DrengineError), file.changing():
        pass
    assert (tmp_path / FILE).read_bytes() == content.encode("latin-1")


def test_a_writer_that_fails_in_between_leaves_what_was(tmp_path: Path) -> None:
    file = PolicyFile(tmp_path)
    with file.changing() as policy:
        file.keep(msgspec.structs.replace(policy, version=1))
    with pytest.raises(ZeroDivisionError), file.changing():
        raise ZeroDivisionError
    assert PolicyFile(tmp_path).read().version == 1
