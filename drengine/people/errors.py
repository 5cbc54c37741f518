"""How people are refused: exit codes 180 to 187."""

from __future__ import annotations

from drengine.model.errors import error_kind

NOT_SIGNED_IN = error_kind(
    "not-signed-in",
    180,
    "Nobody is signed in, or what was shown as a proof is none: it is wrong, over or revoked.",
    "`drengine login NAME` gets a token; for programs `drengine user token create NAME`.",
)
NOT_PERMITTED = error_kind(
    "not-permitted",
    181,
    "Whoever is signed in has no role that may do this.",
    "docs/security.md lists what each role may do; an admin gives roles with `drengine user role NAME`.",
)
SIGN_IN_FAILED = error_kind(
    "sign-in-failed",
    182,
    "There is no account of that name with that password.",
    "`drengine user list` on the orchestrator's host shows the accounts, `drengine user password NAME` sets a new one.",
)
SIGN_IN_LIMIT = error_kind(
    "sign-in-limit",
    183,
    "Too many failed attempts to sign in, for this account or from this address.",
    "Wait as long as the message says. Those that are signed in go on.",
    retryable=True,
)
BAD_ACCOUNT = error_kind(
    "bad-account",
    184,
    "There is no such account or token, or there can be none like that.",
    "The message says why; `drengine user list` shows accounts and tokens.",
)
ACCOUNTS_UNUSABLE = error_kind(
    "accounts-unusable",
    185,
    "The file with the accounts can't be read or written, is damaged, or may be written by others.",
    "The message names it and says why. Put a copy back; without it only the service's own user and root can sign in.",
)
PROVIDER_UNUSABLE = error_kind(
    "provider-unusable",
    190,
    "The OpenID Connect provider can't be asked, or its answer is none.",
    "Check `issuer` and `cacert` in [oidc], and the network to it. Accounts of the orchestrator's own go on.",
    retryable=True,
)
