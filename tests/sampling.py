"""Places to attack, of which `make test` takes some, others each time, and `make campaigns` all."""

from __future__ import annotations

import random

import pytest

SOME_OR_ALL = [pytest.param(3, id="some"), pytest.param(1, id="all", marks=pytest.mark.campaign)]
"""For the parameter `every` of a test."""


def sampled(places: range, every: int) -> range:
    """Each `every`th of them, from a first one that is drawn and printed."""
    first = random.randrange(every)
    print(f"each {every}. from {first}")
    return places[first::every]
