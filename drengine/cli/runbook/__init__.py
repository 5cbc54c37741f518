"""`drengine runbook`: writing runbooks and finding what is wrong with them."""
