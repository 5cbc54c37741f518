"""Runbooks: the YAML that people write, read into values, checked, drawn up, explained."""
