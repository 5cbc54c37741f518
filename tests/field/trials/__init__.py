"""One trial in each module."""
