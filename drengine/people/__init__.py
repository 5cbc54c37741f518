"""People: who somebody is, how that was proved, and what he may do."""
