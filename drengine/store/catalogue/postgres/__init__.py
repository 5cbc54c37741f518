"""The catalogue in PostgreSQL, for a store that several targets share."""
