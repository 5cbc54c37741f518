"""What can go wrong with identities and the CA: kinds with exit codes 3 to 5, and why nobody is enrolled."""

from __future__ import annotations

from drengine.model.errors import DrengineError, error_kind

CA_UNUSABLE = error_kind(
    "ca-unusable",
    3,
    "The CA's directory can't be used: it is missing, damaged or unsafe, or its key's passphrase is wrong.",
    "The message names the file and what is wrong with it; docs/security.md says what lies in a CA's directory.",
)
CA_REFUSED = error_kind(
    "ca-refused",
    4,
    "The CA does not do what was asked: a certificate that may not be, or one that it does not know.",
    "The message says why; `drengine ca list` shows what was issued.",
)
ENROLMENT_REFUSED = error_kind(
    "enrolment-refused",
    5,
    "A certificate was asked for and is not given, or what came is not what was asked for.",
    "The message ends with a word that docs/errors.md explains.",
)

BROKER_FILES = error_kind(
    "broker-files",
    241,
    "Mosquitto's files can't be written, or it could not use them.",
    "The message says which and why; docs/control.md says what lies where.",
)

_NEW_TOKEN = "Make a new one beside the CA: `drengine token create`."
REASONS: dict[str, tuple[str, str]] = {
    "token-malformed": (
        "this is no token, or a part of it is missing",
        "Copy the whole line that `drengine token create` printed.",
    ),
    "token-unknown": ("the authority does not know this token", _NEW_TOKEN),
    "token-expired": ("the token is too old", _NEW_TOKEN),
    "token-used": ("the token has been used as often as it may be", _NEW_TOKEN),
    "token-revoked": ("the token was revoked", _NEW_TOKEN),
    "token-name": (
        "the token is for other names",
        "Ask for a name that its pattern covers (`drengine token list` shows it), or make another token.",
    ),
    "token-role": (
        "the token is for another role",
        "Make one for this role beside the CA: `drengine token create` with --role.",
    ),
    "identity-taken": (
        "somebody has a certificate of this name that is valid",
        "If that host is gone: `drengine ca revoke`, or `drengine token create` with --replace, which revokes it.",
    ),
    "identity-revoked": (
        "the certificate was revoked, or is none that the authority knows",
        "Enrol this host anew, with a token that somebody makes for it knowingly.",
    ),
    "request-refused": (
        "the certificate request can't be granted",
        "Ask with a key of EC P-256, P-384, Ed25519 or RSA of 2048 bits or more, signed by that key.",
    ),
    "pin-mismatch": (
        "the authority that answers has another CA than the token names",
        "Either somebody stands between, or the CA has changed since: compare the fingerprint with `drengine token "
        "list`, and make a new token.",
    ),
    "not-an-authority": (
        "whoever answers there is no authority of this site",
        "Correct the address: it is that of `drengine ca serve`.",
    ),
    "answer-malformed": (
        "the answer is not what was asked for",
        "Look at the authority's log, and at what lies between: nothing may change its answers.",
    ),
    "folder-unusable": (
        "the folder of the certificate can't be read or written",
        "Let this program's user write there, or name another folder.",
    ),
    "agent-missing": (
        "the authority has no one-file agent to hand out",
        "Give it one: `drengine ca serve --agent FILE`, a file that `make agent` wrote or the package brought.",
    ),
    "agent-other": (
        "the one-file agent that came is not the one that was named",
        "It was replaced meanwhile, or changed on its way: ask again, and print the line for joining anew.",
    ),
    "busy": ("the authority has too much to do", "It is asked again by itself; by hand, wait a moment."),
}
"""Why a certificate is not given: meaning, and what to do."""


class EnrolmentError(DrengineError):
    """Nobody is enrolled or renewed. `reason` is a key of REASONS."""

    def __init__(self, reason: str, details: str = "") -> None:
        meaning, hint = REASONS[reason]
        super().__init__(ENROLMENT_REFUSED, f"{meaning}{f': {details}' if details else ''} ({reason})", hint=hint)
        self.reason = reason

    @staticmethod
    def told(reason: str, message: str) -> EnrolmentError:
        """What the authority said, in its own words."""
        error = EnrolmentError(reason)
        error.message = "".join(each if each.isprintable() else "?" for each in message[:500])
        return error
