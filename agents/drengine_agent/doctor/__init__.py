"""What this host can do, before anything is installed: facts, gathered apart from their judgement."""
