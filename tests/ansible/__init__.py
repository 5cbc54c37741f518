"""The Ansible role, run by ansible-core."""
