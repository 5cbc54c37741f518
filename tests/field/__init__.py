"""Trials that people who do this job reported: real processes, file systems and devices. `make field` runs them all."""
