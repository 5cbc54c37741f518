"""Measurements beside references measured in the same run: trust the ratios, not the absolute values."""
