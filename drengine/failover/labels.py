"""What a run calls the branches and points that it makes: the label says whose they are and what they are for.

A label is kept in the store as text, so it is all that is left of a run where the registry is lost. An interrupted step
finds by it what it made (rule 9), and the way home finds by it the run that failed over.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from drengine.store.log.branches import BranchInfo
from drengine.store.store import Store


class Purpose(enum.StrEnum):
    """What a branch or a point of a run is for, as its label ends."""

    RECOVERY = ""
    """The branch on which a run recovers a source, in a drill or for good; and the last points that it takes."""
    RETURN = "back"
    """The branch on which a run put the source in charge again."""
    DIVERGENT = "divergent"
    """The branch that keeps what a source wrote beyond the replica."""


_LABEL = re.compile(r"run:(?P<run>[^:]+)(?::(?P<purpose>[a-z]+)(?::(?P<home>[a-z0-9._-]+))?)?")


@dataclass(frozen=True, slots=True)
class RunLabel:
    """A label as values; `str` gives the text that the store keeps: ``run:ID``, ``run:ID:PURPOSE`` or
    ``run:ID:back:HOME``.

    Attributes:
        home: of a branch that went to another host than the source's namesake: the agent there. The store goes by it
            when it lets an agent ship (`BranchInfo.home`).
    """

    run: str
    purpose: Purpose = Purpose.RECOVERY
    home: str = ""

    def __str__(self) -> str:
        parts = ("run", self.run, self.purpose, self.home)
        return ":".join(each for each in parts if each)

    @staticmethod
    def parse(text: str) -> RunLabel | None:
        """The values of a label; None when no run gave it."""
        found = _LABEL.fullmatch(text)
        if found is None or (found["purpose"] or "") not in set(Purpose):
            return None
        purpose, home = Purpose(found["purpose"] or ""), found["home"] or ""
        return None if home and purpose is not Purpose.RETURN else RunLabel(found["run"], purpose, home)

    def branch(self, store: Store, source: str) -> BranchInfo | None:
        """The branch of the source that has this label."""
        return next((branch for branch in store.branches(source) if branch.label == str(self)), None)
