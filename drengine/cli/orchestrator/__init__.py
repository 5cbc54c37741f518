"""`drengine orchestrator`: the daemon that watches, drills on schedule and answers programs, and its configuration."""
