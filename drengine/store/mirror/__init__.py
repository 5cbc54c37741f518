"""A second copy of a store at another place, kept up to date: at every moment a prefix of the original."""

from drengine.store.mirror.mirror import Mirror, MirrorOptions

__all__ = ["Mirror", "MirrorOptions"]
