"""What can go wrong with a drill's network."""

from __future__ import annotations

from drengine.model.errors import error_kind

BUBBLE_FAILED = error_kind(
    "bubble-failed",
    175,
    "The network of a drill, or a card in it, could not be made on this host.",
    "The message holds the kernel's or dnsmasq's own words; it takes root, network namespaces, bridges, and the Debian "
    "package dnsmasq-base.",
    retryable=True,
)
