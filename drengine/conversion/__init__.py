"""Making a disk of a physical (or other) server boot as a virtual machine: what is changed in the guest, and how.

The guest's own programs do the work (update-initramfs, dracut, grub-mkconfig), inside a small helper machine in QEMU
that has the disks, no network, and nothing else of this host. What to change is decided here, by pure functions from
texts to texts.
"""
