"""`drengine-agent standby`: this machine as a recovery host."""
