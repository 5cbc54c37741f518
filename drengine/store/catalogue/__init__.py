"""The catalogue: its rows, its database, and the epoch that tells an old copy of it."""
