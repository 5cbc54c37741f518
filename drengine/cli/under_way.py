"""Which run a command carries out, so that whoever interrupts it learns what to type then."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class UnderWay:
    """`run`: its id; empty as long as none was begun."""

    run: str = ""
