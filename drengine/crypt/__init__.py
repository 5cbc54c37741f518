"""Encryption at rest: the key-encryption key and where it comes from, data keys, and the cipher of one segment."""
