"""An MQTT message, and how long one may be. What it says as JSON is in `messages`."""

from __future__ import annotations

from dataclasses import dataclass

PAYLOAD_BYTES_MAX = 128 << 10
"""What AWS IoT Core allows."""
PACKET_BYTES_MAX = PAYLOAD_BYTES_MAX + 4096


@dataclass(frozen=True, slots=True)
class Message:
    """What is published or arrives. `expiry_seconds` 0: the broker may keep it for ever."""

    topic: str
    payload: bytes
    retained: bool = False
    expiry_seconds: int = 0
