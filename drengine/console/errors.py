"""How a request is refused: exit code 121, as far as it has one."""

from __future__ import annotations

from drengine.model.errors import error_kind

BAD_REQUEST = error_kind(
    "bad-request",
    121,
    "A request to the REST API, or its address, is not right.",
    "The message says what; docs/rest.md and /api/v1/openapi.json show each request.",
)
ORCHESTRATOR_UNREACHABLE = error_kind(
    "orchestrator-unreachable",
    189,
    "The orchestrator can't be asked.",
    "Check --url (or DRENGINE_URL), that `drengine orchestrator run` runs there, and --cacert for its certificate.",
    retryable=True,
)
