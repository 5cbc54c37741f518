"""The failures of control messages that a person can meet. Exit codes 94 to 97."""

from __future__ import annotations

from drengine.model.errors import error_kind

BROKER_UNREACHABLE = error_kind(
    "broker-unreachable",
    94,
    "The MQTT broker can't be reached, or none is configured.",
    "Check the broker's address, service and certificates. Promotion needs no broker; what needs a remote agent does.",
    retryable=True,
)
NO_ANSWER = error_kind(
    "no-answer",
    95,
    "The party did not answer the command in time; it may still carry it out.",
    "Look at its presence and last report; the same command given again is not carried out twice.",
    retryable=True,
)
BROKER_FAILED = error_kind(
    "broker-failed",
    96,
    "The embedded broker could not be started.",
    "Choose a free port on loopback, or use Mosquitto: `drengine broker config`.",
)
COMMAND_DROPPED = error_kind(
    "command-dropped",
    97,
    "The party received the command but did not carry it out.",
    "Its message says why: an older generation, an interruption, or a deadline; decide anew and give a new command.",
)
