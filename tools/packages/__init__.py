"""Packages for Debian and RPM systems: `make packages`."""
