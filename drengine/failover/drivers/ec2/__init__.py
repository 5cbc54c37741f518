"""The `ec2` driver: EBS volumes and an instance, on an Outpost or in a zone.

The control plane is in the region, so a launch needs the region; docs/outpost.md says which way of recovery does not.
EBS volumes are filled by a recovery host in the same place, the helper, from the target over the local network.
"""
