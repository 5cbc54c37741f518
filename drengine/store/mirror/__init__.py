"""A second copy of a store at another place, kept up to date: at every moment a prefix of the original."""

from drengine.store.mirror.destination import opened_copy
from drengine.store.mirror.mirror import Lag, Mirror, MirrorOptions, PassReport
from drengine.store.mirror.pace import Pace, Stopped

__all__ = ["Lag", "Mirror", "MirrorOptions", "Pace", "PassReport", "Stopped", "opened_copy"]
