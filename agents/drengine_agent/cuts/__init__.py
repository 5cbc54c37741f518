"""Consistent cuts of a live host: when to force one, and how its file systems are held still and never left frozen."""
