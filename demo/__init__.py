"""The whole story on one machine, unprivileged: a disk is written, its source dies, its replica comes back."""
