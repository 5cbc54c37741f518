"""`drengine fleet`: all sources together."""
