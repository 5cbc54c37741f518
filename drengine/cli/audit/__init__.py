"""`drengine audit`: who did what, and whether anybody changed what is told of it."""
