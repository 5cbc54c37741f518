"""The agent's process: one source's replication, and everybody who asks it."""
