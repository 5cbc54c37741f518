"""The `qemu` driver: a virtual machine on this host that boots a source's promoted disks."""
