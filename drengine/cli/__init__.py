"""The `drengine` command line: one module a command; each parses, calls and renders."""
