"""`drengine user`, `login` and `logout`: accounts, and being one of them."""
