"""The agent on a source server: captures changes and ships them. Nothing imports it."""
