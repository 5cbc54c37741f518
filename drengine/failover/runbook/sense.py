"""Whether parts of a runbook make sense: names, durations, commands, addresses, references. Mistakes have places."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from drengine.config import parse_duration
from drengine.failover.runbook.document import Node, node_at, path_text
from drengine.failover.runbook.findings import Findings, Place, did_you_mean, shown
from drengine.model.errors import DrengineError
from drengine.model.names import check_name
from drengine.process.given import references

ITEMS_MAX = 1000
"""Sources, waves, steps of one wave."""
DAYS_MAX = 30
_REFERENCE = re.compile(r"\$\{([^}]{0,200})\}")
_DETAIL = re.compile(r"([a-z0-9][a-z0-9._-]*)\.([a-z0-9_]+)", re.ASCII)
_SHELL = re.compile(r"[\s|&;<>`]")


@dataclass(frozen=True, slots=True)
class Sense:
    """Notes what makes no sense in one part of a runbook; each method is given keys that lead on from there.

    Attributes:
        findings: takes what is found.
        root: the tree that the runbook was made from, for the places.
        sources: names of the runbook's sources, to which texts may refer.
        at: keys and numbers that lead to the part.
    """

    findings: Findings
    root: Node
    sources: Collection[str]
    at: tuple[str | int, ...] = ()

    def inside(self, *keys: str | int) -> Sense:
        """The same for a part of this part."""
        return replace(self, at=(*self.at, *keys))

    def error(self, id: str, message: str, hint: str, *keys: str | int, of_key: bool = False) -> None:
        """A mistake; `of_key`: it is the last key itself, not what stands there."""
        self.findings.add(id, self._place(keys, of_key), path_text((*self.at, *keys)), message, hint)

    def warning(self, id: str, message: str, hint: str, *keys: str | int) -> None:
        """What may be meant so, but is worth a thought."""
        self.findings.add(id, self._place(keys, False), path_text((*self.at, *keys)), message, hint, warning=True)

    def name(self, text: str, what: str, *keys: str | int, of_key: bool = False) -> None:
        """A name as the store and the broker know them."""
        try:
            check_name(text, what=what)
        except DrengineError as error:
            self.error(error.kind.id, error.message, error.kind.hint, *keys, of_key=of_key)

    def seconds(self, text: str, *keys: str | int, positive: bool = False, days_max: int = DAYS_MAX) -> None:
        """A duration."""
        try:
            seconds = parse_duration(text)
        except ValueError as error:
            message = str(error).partition(";")[0]
            self.error("bad-duration", message, "Write for example 500ms, 5s, 10m, 1h or 7d.", *keys)
            return
        too_long = seconds > days_max * 86400
        if too_long or (positive and seconds <= 0):
            why = f"more than {days_max} days" if too_long else "no time at all"
            self.error("bad-duration", f"{shown(text)} is {why}", "Write for example 30s or 10m.", *keys)

    def count(self, number: int, most: int, *keys: str | int) -> None:
        """A number from 0 to `most`."""
        if not 0 <= number <= most:
            self.error("bad-value", f"{number} is out of range", f"0 to {most} are possible.", *keys)

    def most(self, items: Sized, *keys: str | int) -> None:
        """Not more items than anybody needs."""
        if len(items) > ITEMS_MAX:
            hint = f"{ITEMS_MAX} are possible: split the runbook."
            self.error("too-large", f"{len(items)} are too many", hint, *keys)

    def argv(self, argv: Sequence[str], *keys: str | int) -> None:
        """A program and its arguments."""
        if not argv or not argv[0].strip():
            self.error("bad-command", "it names no program", "Write [PROGRAM, ARGUMENT, ...].", *keys)
            return
        if _SHELL.search(argv[0]):
            hint = "No shell is used: write the program and each argument as items of their own."
            self.error("bad-command", f"{shown(argv[0])} is the name of no program", hint, *keys, 0)
        self.no_way_up(argv[0], *keys, 0)

    def url(self, url: str, *keys: str | int) -> None:
        """A web address, perhaps with references."""
        self.filled(url, *keys)
        try:
            parts = urlsplit(_REFERENCE.sub("reference", url))
            fits = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        except ValueError:
            fits = False
        if not fits or re.search(r"\s", url):
            self.error(
                "bad-value", f"{shown(url)} is no web address", "Write for example http://10.0.0.5:8080/health.", *keys
            )

    def filled(self, text: str, *keys: str | int) -> None:
        """A text that says something, perhaps with references."""
        if not text.strip():
            self.error("bad-value", "it is empty", "Give it a value.", *keys)
        self.references([text], *keys)

    def references(self, texts: Iterable[str], *keys: str | int) -> None:
        """``${SOURCE.KEY}`` names a source that the runbook launches."""
        for text in texts:
            for found in _REFERENCE.finditer(text):
                if next(references(found[0]), None):
                    continue
                detail = _DETAIL.fullmatch(found[1])
                if detail is None or found[1].rpartition(".")[0] not in self.sources:
                    known = (f"{name}.address" for name in self.sources)
                    hint = f"{did_you_mean(found[1], known)} Write ${{SOURCE.KEY}}, KEY as the driver tells it."
                    self.error("bad-reference", f"{shown(found[0])} refers to no source", hint, *keys)

    def no_way_up(self, text: str, *keys: str | int) -> None:
        """A path that stays where it is."""
        if ".." in PurePosixPath(text).parts or "\0" in text:
            hint = "Write the path without '..'."
            self.error("way-up", f"{shown(text)} leads out of its directory", hint, *keys)

    def _place(self, keys: Sequence[str | int], of_key: bool) -> Place:
        at = (*self.at, *keys)
        parent, last = node_at(self.root, at[:-1]), at[-1] if at else ""
        if isinstance(last, str) and last in parent.keys:
            below = parent.entries[last].entries if parent.entries else None
            if of_key or below:
                return parent.keys[last]  # a mapping begins in the line after its key
        return node_at(self.root, at).place
