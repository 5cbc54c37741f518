"""A live disk and its target, for every test of an installation."""

from __future__ import annotations

from tests.agent.install.live import disk, target

__all__ = ["disk", "target"]
