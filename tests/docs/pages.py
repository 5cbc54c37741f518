"""What the documents tell people to type: the commands in the fenced blocks of README and docs/."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGES = ("README.md", *(str(page.relative_to(ROOT)) for page in sorted(ROOT.glob("docs/*.md"))))
GENERATED = frozenset({"docs/cli.md", "docs/agent.md"})
"""Their synopses are made from the programs themselves."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"\s{2,}# .*$|^#.*$", re.MULTILINE)
_PROGRAMS = (
    r"(?:\./|/opt/drengine/bin/)?(?:drengine-agent|drengine|make|sudo|systemctl|curl|nbdinfo|nbdcopy|qemu-img|touch|"
    r"mount|losetup|install|umask|sqlite3|python3|pip|export|mosquitto\w*|apt-get|openssl|podman)\b"
)
_COMMAND = re.compile(rf"(?:\w+=\S* )?{_PROGRAMS}(?:$|\s(?! *=))")


@dataclass(frozen=True, slots=True)
class Typed:
    """A command as it stands in a page."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def blocks(page: str) -> Iterator[tuple[int, str, str]]:
    """Line, language and content of each fenced block."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        yield text.count("\n", 0, match.start()) + 2, match[1], match[2]


def commands(page: str) -> list[Typed]:
    """The commands of a page, in order: lines that a backslash continues are one; comments are left out."""
    found = []
    for line, language, content in blocks(page):
        if language not in ("", "sh", "bash", "console"):
            continue
        joined = re.sub(r"\\\n\s*", lambda match: "\x00", content)
        at = line
        for row in joined.split("\n"):
            text = _COMMENT.sub("", row.replace("\x00", "")).strip()
            if _COMMAND.match(text):
                found.append(Typed(page, at, text))
            at += 1 + row.count("\x00")
    return found


def files(page: str) -> list[str]:
    """The blocks of a page that are a configuration file's content (TOML without a language, by its look)."""
    return [content for _, language, content in blocks(page) if language in ("", "toml") and _is_toml(content)]


def _is_toml(content: str) -> bool:
    return bool(re.match(r"(\[\w+\]\n)?\w+ = ", content))
