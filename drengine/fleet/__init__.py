"""All sources of a site together: how they stand, what was decided about them, and upgrades in rings."""
