"""Watching drengine: what Prometheus and Grafana are given, and telling people what happens."""
