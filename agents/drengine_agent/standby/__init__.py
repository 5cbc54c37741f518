"""A recovery host: attaches promoted disks, mounts their file systems, starts the services, and undoes all of it."""
