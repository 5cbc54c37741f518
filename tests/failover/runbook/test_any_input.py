"""No text makes the reader fail, hang, or say nothing: invariants of `examine` under arbitrary and mutated input."""

from __future__ import annotations

import random
import re
import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drengine.failover.reading.check import find_cycle
from drengine.failover.reading.reader import Examined, examine
from drengine.failover.runbook.document import NODES_MAX, parse
from drengine.failover.runbook.findings import FINDINGS_MAX, Findings
from drengine.failover.runbook.values import Wave
from tests.failover.runbook.books import SMALL, WHOLE


def judged(text: str) -> Examined:
    """`examine`, and what holds for every answer."""
    examined = examine(text)
    errors = [each for each in examined.findings if not each.warning]
    assert (examined.runbook is None) == bool(errors)
    assert len(examined.findings) <= FINDINGS_MAX
    lines = len(re.split("\r\n|[\r\n]", text)) + 1  # YAML takes each of them for a line's end
    for each in examined.findings:
        assert 1 <= each.place.line <= lines
        assert each.place.column >= 1
        shown = each.shown("x.yaml")
        assert len(shown) < 1500
        assert "\n" not in shown
        assert each.id
        assert each.hint
    return examined


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=300))
@example("&a" * 400)
@example("[" * 3000)
@example("%YAML 9.9\n---\na")
@example("a: |99999\n x")
@example("\ufeff")
def test_any_text_is_judged(text: str) -> None:
    judged(text)


PIECES = [
    *WHOLE.split(),
    "!!x",
    "&a",
    "*a",
    "<<: *a",
    "[",
    "]",
    "{",
    "}",
    "- ",
    ": ",
    "? ",
    "| ",
    "\t",
    "\n",
    "\n  ",
    "..",
    "'",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=60).map(" ".join))
def test_any_words_in_any_order_are_judged(text: str) -> None:
    judged(text)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([SMALL, WHOLE]), st.integers(0, 1 << 30))
def test_runbooks_with_something_broken_are_judged(text: str, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(text) or 1)
        cut = chance.randrange(0, 8)
        put = "".join(chance.choice(string.printable) for _ in range(chance.randrange(0, 5)))
        text = text[:at] + put + text[at + cut :]
    judged(text)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([SMALL, WHOLE]), st.data())
def test_a_value_of_another_kind_is_never_taken_for_the_right_one(text: str, data: st.DataObject) -> None:
    lines = text.splitlines()
    number = data.draw(st.integers(0, len(lines) - 1))
    key, colon, _ = lines[number].partition(": ")
    if not colon:
        return
    lines[number] = key + ": " + data.draw(st.sampled_from(["[]", "{}", "5", "null", "true", "[[]]", "-1", "x", "''"]))
    judged("\n".join(lines))


BOMBS = {
    "aliases of aliases": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"b{n}: &b{n} [{','.join([f'*b{n - 1}' if n else '*a'] * 9)}]\n" for n in range(30)),
    "aliases as values": "a: &a {" + ",".join(f"k{n}: v" for n in range(500)) + "}\nb: [" + "*a," * 5000 + "]",
    "deep lists": "[" * 100_000,
    "deep mappings": "{a: " * 100_000,
    "deep blocks": "".join(" " * n + "a:\n" for n in range(700)),
    "deep keys": "? " * 100_000,
    "many keys": "\n".join(f"k{n}: 1" for n in range(90_000)),
    "many anchors": "\n".join(f"- &a{n} x" for n in range(60_000)),
    "one long word": "x" * (1 << 20),
    "one long key": "a" * 500_000 + ": 1",
    "too long": "#" * (1 << 21),
    "many unknown keys that are nearly right": "\n".join(f"version{n}: 1" for n in range(20_000)),
    "many waves": "version: 1\nname: x\nsources: {a: {launch: {driver: q}}}\nwaves:\n"
    + "".join(f"- {{name: w{n}, after: [w{(n + 1) % 9000}]}}\n" for n in range(9000)),
    "many sources that are not there": "version: 1\nname: x\nsources: {a: {launch: {driver: q}}}\nwaves:\n- name: b\n"
    "  sources: [" + ",".join(f"s{n}" for n in range(40_000)) + "]",
    "a merge of merges": "a: &a\n  <<: &b\n    <<: *b\n",
    "a huge number": "version: " + "9" * 100_000,
}


@pytest.mark.fault(55)
@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once(name: str) -> None:
    assert judged(BOMBS[name]).runbook is None


def test_a_tree_is_never_larger_than_allowed_however_its_aliases_are_written() -> None:
    text = "a: &a [1,2,3,4,5,6,7,8,9]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b]"
    tree = parse(text, Findings())
    assert tree is not None

    def count(value: object) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return 1 + sum(count(each) for each in inner)

    keys = 3
    assert tree.size == count(tree.builtins()) + keys
    assert tree.size < NODES_MAX


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdefx"), max_size=4), max_size=6))
def test_a_cycle_is_found_when_there_is_one_and_it_is_one(after: dict[str, list[str]]) -> None:
    waves = [Wave(name=name, after=others) for name, others in after.items()]
    cycle = find_cycle(waves)
    reach = {name: {each for each in others if each in after} for name, others in after.items()}
    for middle in after:
        for name in after:
            if middle in reach[name]:
                reach[name] |= reach[middle]
    assert bool(cycle) == any(name in reach[name] for name in after)
    for at, name in enumerate(cycle):
        assert cycle[(at + 1) % len(cycle)] in after[name]
