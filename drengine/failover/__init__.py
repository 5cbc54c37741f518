"""Runbooks and their execution: observe a snapshot, decide in a pure function, act in an executor that journals."""
