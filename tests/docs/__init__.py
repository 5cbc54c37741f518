"""The documents are typed: every command in them runs, on a machine that is thrown away."""
