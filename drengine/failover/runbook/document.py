"""Text to a tree of nodes with their places: a bounded, harmless part of YAML.

Read: mappings with text keys, lists, plain and quoted scalars, anchors and aliases. Refused: tags (fault 55), more than
one document, keys that occur twice, aliases that contain themselves, trees that are too deep or, with their aliases
written out, too large (so that ten lines can't become a thousand million). Nothing here recurses on input's account.

Plain scalars mean what a reader expects: `true`, `false`, `null`, numbers in decimal; everything else is text, also
`yes`, `on`, `010` and `12:30`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from drengine.failover.runbook.findings import Findings, Place, shown

TEXT_CHARACTERS_MAX = 1 << 20
NODES_MAX = 50_000
DEPTH_MAX = 24

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_FORBIDDEN = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\u2027\u202f-\u2065\u206a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
    "|[\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2060-\u2064\u2800\u3164\uffa0\U000e0000-\U000e0fff]"
)
"""Control characters, lone surrogates, what nobody sees, and marks that change the order in which text is shown but not
in which it is read: an approver must see what will be done."""

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})", re.ASCII)
_FLOAT = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})\.[0-9]{1,17}", re.ASCII)
_MERGE = "<<"
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}


@dataclass(slots=True, eq=False)
class Node:
    """A value and where it stands.

    Attributes:
        place: of its first character.
        value: of a scalar.
        written: a scalar as it was written.
        items: of a list, else None.
        entries: of a mapping, by key, in order; else None.
        keys: places of the keys.
        size: how many nodes it has with aliases written out.
    """

    place: Place
    value: str | int | float | bool | None = None
    written: str = ""
    items: list[Node] | None = None
    entries: dict[str, Node] | None = None
    keys: dict[str, Place] = field(default_factory=dict)
    size: int = 1

    @property
    def what(self) -> str:
        """What it is, for people."""
        if self.entries is not None:
            return "a mapping"
        if self.items is not None:
            return "a list"
        if self.value is None:
            return "empty"
        return {bool: "true or false", int: "a number", float: "a number"}.get(type(self.value), "text")

    def builtins(self) -> Any:
        """As dict, list, str, int, float, bool and None; its depth is bounded."""
        if self.entries is not None:
            return {key: node.builtins() for key, node in self.entries.items()}
        if self.items is not None:
            return [node.builtins() for node in self.items]
        return self.value


class Unreadable(Exception):
    """The rest of the text has no meaning that could be looked at."""


def parse(text: str, findings: Findings) -> Node | None:
    """The tree of the only document in `text`, or None when there is none that could be looked at further."""
    start = Place(1, 1)
    if len(text) > TEXT_CHARACTERS_MAX:
        findings.add("too-large", start, "", f"it has more than {TEXT_CHARACTERS_MAX} characters", "Split it.")
        return None
    text = text.removeprefix("\ufeff")
    bad = _FORBIDDEN.search(text)
    if bad:
        findings.add(
            "control-character",
            _place_at(text, bad.start()),
            "",
            f"the character U+{ord(bad[0]):04X} is not allowed",
            "Remove it: it is invisible or changes how the text is shown.",
        )
        return None
    try:
        return _Builder(findings).build(text)
    except Unreadable:
        return None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark else start
        problem = " ".join(str(error.problem or error.context or "it can't be read").split())[:200]
        findings.add("yaml-syntax", place, "", problem, _syntax_hint(problem, text, mark))
    except (yaml.YAMLError, RecursionError, ValueError, MemoryError) as error:
        findings.add("yaml-syntax", start, "", f"it can't be read: {type(error).__name__}", "It is no YAML.")
    return None


def _place_at(text: str, offset: int) -> Place:
    before = text[:offset]
    return Place(before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1)


def _syntax_hint(problem: str, text: str, mark: Any) -> str:
    before = "".join(text.split("\n")[mark.line : mark.line + 1])[: mark.column + 1] if mark else ""
    if "\t" in before:
        return "Indent with spaces, never with tabs."
    if "mapping values are not allowed" in problem:
        return "A text that contains ': ' has to stand in quotes."
    return "Look at the indentation, at quotes that are not closed, and at '- ' before the items of a list."


class _Builder:
    """Builds the tree from the parser's events."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._open: list[Node] = []
        self._pending: list[tuple[str, Place] | None] = []
        """The key that waits for its value, of each open node."""
        self._anchors: dict[str, Node] = {}
        self._nodes = 0
        self._root: Node | None = None

    def build(self, text: str) -> Node | None:
        documents = 0
        for event in yaml.parse(text, Loader=_LOADER):
            mark: Any = event.start_mark
            place = Place(mark.line + 1, mark.column + 1)
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._refuse("many-documents", place, "a second document begins here", "Write one runbook a file.")
            elif isinstance(event, yaml.AliasEvent):
                self._take(self._alias(event.anchor or "", place), place)
            elif isinstance(event, yaml.NodeEvent):
                self._node(event, place)
            elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
                self._close()
        if self._root is None:
            self._findings.add(
                "empty", Place(1, 1), "", "there is nothing in it", "`drengine runbook init` writes one."
            )
        return self._root

    def _node(self, event: Any, place: Place) -> None:
        if event.tag is not None and event.tag != "!":
            self._refuse("yaml-tag", place, f"tags are not allowed: {shown(event.tag)}", "Remove it.")
        self._nodes += 1
        if self._nodes > NODES_MAX or len(self._open) >= DEPTH_MAX:
            self._refuse("too-large", place, "it is too large or too deep", "Split it.")
        if isinstance(event, yaml.ScalarEvent):
            bad = _FORBIDDEN.search(event.value)  # quoted texts can escape what the document itself may not hold
            if bad:
                self._refuse(
                    "control-character", place, f"the character U+{ord(bad[0]):04X} is not allowed", "Remove it."
                )
            plain = event.implicit[0] and not event.style
            node = Node(place, value=_resolve(event.value) if plain else event.value, written=event.value)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = Node(place, items=[])
        else:
            node = Node(place, entries={})
        if isinstance(event, yaml.ScalarEvent):
            if event.anchor:
                self._anchors[event.anchor] = node
            self._take(node, place)
            return
        self._open.append(node)
        self._pending.append(None)
        node.written = event.anchor or ""  # becomes an anchor when it is closed: an alias inside would contain itself

    def _close(self) -> None:
        node = self._open.pop()
        self._pending.pop()
        anchor, node.written = node.written, ""
        if anchor:
            self._anchors[anchor] = node
        self._take(node, node.place)

    def _alias(self, anchor: str, place: Place) -> Node:
        target = self._anchors.get(anchor)
        if target is None:
            hint = f"Put &{anchor[:40]} before what it stands for, outside of it."
            self._refuse("yaml-alias", place, f"{shown('*' + anchor)} stands for nothing that is complete here", hint)
        assert target is not None
        return target

    def _take(self, node: Node, place: Place) -> None:
        """Put a finished node where it belongs."""
        if not self._open:
            self._root = node
            return
        parent = self._open[-1]
        parent.size += node.size
        if parent.size > NODES_MAX:
            self._refuse("too-large", place, "with its aliases written out it is too large", "Use fewer aliases.")
        if parent.items is not None:
            parent.items.append(node)
            return
        assert parent.entries is not None
        pending = self._pending[-1]
        if pending is None:
            self._pending[-1] = (self._key(node, place), place)
            return
        key, key_place = pending
        self._pending[-1] = None
        if key == _MERGE:
            message = f"{shown(_MERGE)} merges nothing: what is approved must be written where it stands"
            hint = "Write the keys out, or use an alias for a whole value: KEY: *ANCHOR."
            self._findings.add("merge-key", key_place, "", message, hint)
            return
        if key in parent.entries:
            first = parent.keys[key].line
            self._findings.add(
                "duplicate-key", key_place, "", f"{shown(key)} stands already in line {first}", "Remove one of them."
            )
        parent.entries[key] = node
        parent.keys[key] = key_place

    def _key(self, node: Node, place: Place) -> str:
        if node.items is not None or node.entries is not None or not node.written:
            self._refuse("bad-key", place, "a key has to be a text", "Write KEY: VALUE.")
        return node.written

    def _refuse(self, id: str, place: Place, message: str, hint: str) -> None:
        self._findings.add(id, place, "", message, hint)
        raise Unreadable


def _resolve(text: str) -> str | int | float | bool | None:
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def join(path: str, key: str) -> str:
    """The path of a key's value; a key may be any text, so it is shortened."""
    key = key if len(key) <= 60 else f"{key[:57]}..."
    return f"{path}.{key}" if path else key


def node_at(node: Node, path: tuple[str | int, ...]) -> Node:
    """The node that a path of keys and numbers leads to, or the last one on the way that is there."""
    for part in path:
        if isinstance(part, int) and node.items is not None and part < len(node.items):
            node = node.items[part]
        elif isinstance(part, str) and node.entries is not None and part in node.entries:
            node = node.entries[part]
        else:
            return node
    return node


def path_text(path: tuple[str | int, ...]) -> str:
    """``waves[0].name``."""
    text = ""
    for part in path:
        text = f"{text}[{part}]" if isinstance(part, int) else join(text, part)
    return text
