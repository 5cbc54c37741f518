"""How much an NBD server lets its clients ask for."""

from __future__ import annotations

from dataclasses import dataclass

from drengine.nbd.export import REQUEST_BYTES_MAX


@dataclass(frozen=True, slots=True)
class NbdLimits:
    """Bounds on one server. A connection past one of the first group is ended; past the second it waits.

    Attributes:
        handshake_seconds_max: from accept to the start of transmission, TLS included. Idle is fine after that.
        options_max: options in one handshake.
        option_bytes_max: one option's data.
        name_bytes_max: an export's name in UTF-8 (the protocol would allow 4096).
        request_bytes_max: a WRITE's payload; a READ beyond it gets an error.
        connections_max: at a time in transmission, over all listeners; more are closed at accept.
        handshakes_max: at a time before that; one more, and the oldest of the peer that has most of them is closed.
        requests_in_flight_max: per connection; reading stops until some are answered.
        requests_in_turn_max: per connection, handed to an inline export before other connections are looked at.
        bytes_in_flight_max: per connection, READ and WRITE lengths; it may be passed by one request.
        bytes_held_max: all connections together, requests in flight and replies that wait to be taken; beside it each
            connection may hold `bytes_share`. At least `request_bytes_max`.
        stalled_seconds_max: a client with replies waiting, or amid a payload, that moves less than `stalled_bytes_min`
            in this time (and in the one before) is cut off.
        receive_buffer_bytes: per connection; longer payloads get memory of their own.
        names_listed_max: LIST's answer.
        extents_max: one BLOCK_STATUS answer.
    """

    handshake_seconds_max: float = 15.0
    options_max: int = 256
    option_bytes_max: int = 4096
    name_bytes_max: int = 512
    request_bytes_max: int = REQUEST_BYTES_MAX
    connections_max: int = 256
    handshakes_max: int = 64
    requests_in_flight_max: int = 128
    requests_in_turn_max: int = 128
    bytes_in_flight_max: int = 64 << 20
    bytes_held_max: int = 256 << 20
    bytes_share: int = 256 << 10
    stalled_seconds_max: float = 30.0
    stalled_bytes_min: int = 1 << 20
    receive_buffer_bytes: int = 256 << 10
    names_listed_max: int = 10_000
    extents_max: int = 8192
