"""What can go wrong between two hosts."""

from drengine.model.errors import error_kind

OUTSIDE_DATA_NETWORK = error_kind(
    "outside-data-network",
    20,
    "The peer's address is outside the configured data networks; no data may go there.",
    "Add its network to `data_networks` if block data may travel there, or correct the address.",
)
PLAIN_REFUSED = error_kind(
    "plain-refused",
    21,
    "Plain TCP is allowed only on loopback.",
    "Configure TLS certificates on both sides, or set `allow_plain = true` knowingly.",
)
BAD_TLS_FILES = error_kind(
    "bad-tls-files",
    22,
    "A certificate, key or CA file is missing, unreadable or does not fit.",
    "Check the paths, permissions and that the key belongs to the certificate.",
)
UNREACHABLE = error_kind(
    "peer-unreachable",
    23,
    "The peer can't be reached, or the connection broke.",
    "Check the address, the service at the other end, the network between, and both sides' certificates.",
    retryable=True,
)
TIMED_OUT = error_kind(
    "peer-silent",
    24,
    "The peer said nothing for too long.",
    "The network may be half open or the peer overloaded; the session is made anew.",
    retryable=True,
)
