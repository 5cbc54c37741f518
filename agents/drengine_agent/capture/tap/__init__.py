"""The tap: serving a disk over NBD and recording its writes in order."""
