"""What the Linux kernel tells about this host: mounts, files and disks."""
