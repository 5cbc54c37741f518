"""Scanning: comparing volumes with the hashes of their blocks."""
