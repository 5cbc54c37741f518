"""Commands that a host's owner lets orders run there, as patterns of words."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from fnmatch import fnmatchcase

REST = "..."
"""At the end of a command's pattern: any further words."""
COMMANDS_HELP = (
    "compared word by word: `*` and `?` stand for characters of a word, `...` at the end for any further words"
)


def check_commands(commands: Sequence[str]) -> None:
    """For the option that lists them.

    Raises:
        ValueError: one of them is no command.
    """
    for each in commands:
        if not shlex.split(each):
            raise ValueError("a command has at least one word")


def is_allowed(argv: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether one of the patterns fits a command."""
    return any(_fits(pattern, argv) for pattern in patterns)


def _fits(pattern: str, argv: Sequence[str]) -> bool:
    words = shlex.split(pattern)
    if words[-1] == REST:
        words = words[:-1]
        argv = argv[: len(words)] if len(argv) >= len(words) else argv
    return len(words) == len(argv) and all(fnmatchcase(word, each) for each, word in zip(words, argv, strict=True))
