"""Strangers and misbehaving parties at living daemons, while honest ones go on and are measured."""
