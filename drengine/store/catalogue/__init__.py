"""The catalogue: its interface and rows, the SQLite that keeps them, and the epoch that tells an old copy of it."""
