"""Launch drivers start workloads from promoted disks: entry points of the group `drengine.launch_drivers`."""
