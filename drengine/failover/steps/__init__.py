"""What a run does, one module per kind of step. Each can check, act and verify, and is safe to repeat."""
