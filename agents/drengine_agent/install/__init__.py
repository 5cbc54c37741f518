"""Putting the agent onto a server and taking it off again."""
