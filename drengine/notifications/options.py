"""[notifications]"""

from __future__ import annotations

from dataclasses import dataclass

from drengine.config import COUNT, DURATION, WORDS, option
from drengine.notifications.notice import Topic
from drengine.process.given import references

TOPICS = tuple(topic.value for topic in Topic if topic is not Topic.TEST)
OPEN_SCHEMES = ("form", "forms", "json", "jsons", "xml", "xmls")
"""Of URLs that hold no secret unless they name a user."""


def _by_reference(urls: tuple[str, ...]) -> None:
    for url in urls:
        scheme, _, rest = url.partition("://")
        if not any(references(url)) and (scheme not in OPEN_SCHEMES or "@" in rest):
            raise ValueError(
                f"{scheme[:20]}://... holds a secret, or may: refer to it by ${{file:/PATH}}, ${{credential:NAME}} or "
                "${env:NAME}"
            )


def _topics(names: tuple[str, ...]) -> None:
    for name in names:
        if name not in TOPICS:
            raise ValueError(f"{name[:40]!r} is none of {', '.join(TOPICS)}")


def _tries(count: int) -> None:
    if not 1 <= count <= 10:
        raise ValueError("1 to 10 are possible")


def _timeout(seconds: float) -> None:
    if not 1 <= seconds <= 60:
        raise ValueError("1s to 60s are possible")


@dataclass(frozen=True)
class NotificationOptions:
    """Whom to tell what happens, over Apprise."""

    to: tuple[str, ...] = option(
        WORDS,
        default=(),
        check=_by_reference,
        help="Where notices go: Apprise URLs (slack, mailto, jsons...). They hold secrets, so refer to them: "
        "`${file:/etc/drengine/slack.url}`, `${credential:NAME}`, `${env:NAME}`. Needs the extra `notifications`.",
    )
    about: tuple[str, ...] = option(WORDS, default=TOPICS, check=_topics, help=f"What is told: {', '.join(TOPICS)}.")
    timeout: float = option(
        DURATION,
        default=10.0,
        check=_timeout,
        help="How long a try waits for the other side, to connect and to read.",
    )
    tries: int = option(COUNT, default=3, check=_tries, help="How often a notice is tried at each place.")
