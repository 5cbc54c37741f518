"""Writing a branch: the log's writer, branches that are written at random, promotions, and what changed since."""
