"""Disk images of whole systems, made once and shared by all tests."""
