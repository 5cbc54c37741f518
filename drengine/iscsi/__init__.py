"""Disks as iSCSI LUNs, for machines that boot from a SAN or have no NBD: Debian's tgt, configured by us."""
