"""drengine: disaster-recovery replication and failover, block by block, without the region."""

__version__ = "0.1.0"
