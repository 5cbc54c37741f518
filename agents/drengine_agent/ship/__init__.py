"""Shipping changes to the target."""
