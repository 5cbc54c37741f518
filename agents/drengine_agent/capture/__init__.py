"""Trackers: what changed on the volumes of one source server since a mark."""
