"""What programs and people's browsers talk to: the orchestrator over HTTP, on loopback until there are identities."""
