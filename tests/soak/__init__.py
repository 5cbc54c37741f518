"""Real processes killed again and again under load."""
