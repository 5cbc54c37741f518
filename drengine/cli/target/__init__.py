"""`drengine target`: the daemon that receives, keeps and serves replicas, and its configuration."""
