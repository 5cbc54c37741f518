"""Stores whose catalogue is in PostgreSQL, beside those in SQLite."""
