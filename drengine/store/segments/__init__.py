"""Segments, the store's write-ahead log on disk: their bytes, and their extent tables as columns."""
