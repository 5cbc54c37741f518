"""The failures of policy and retirement. Exit codes 210 to 212."""

from __future__ import annotations

from drengine.model.errors import error_kind

BAD_POLICY = error_kind(
    "bad-policy",
    210,
    "A policy has a name, a value or a pattern that is not possible.",
    "The message says which; docs/operations.md#policy lists the settings with their values.",
)
POLICY_UNUSABLE = error_kind(
    "policy-unusable",
    211,
    "What the site decided about its sources can't be read or kept.",
    "The message names the file, policy.json in the store's directory. If it is damaged, move it away and set the "
    "policy again; what agents were given before goes on until then.",
)
SOURCE_RETIRED = error_kind(
    "source-retired",
    212,
    "The source was retired: it may not ship any more.",
    "If it shall join again: give it a new identity by a token, or `drengine source add NAME` where there are none.",
)
