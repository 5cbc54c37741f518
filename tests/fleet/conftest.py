"""Fixtures of these tests."""

from tests.agent.install.live import disk

__all__ = ["disk"]
