"""Change tracking on an unmodified kernel: what the eBPF tracker keeps inside the kernel, and how it is reached."""
