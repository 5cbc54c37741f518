"""`drengine monitoring`: what Prometheus and Grafana need, and a trial of notifications."""
