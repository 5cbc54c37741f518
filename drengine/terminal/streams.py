"""The way out for everything that a command prints, whoever prints it: what can't be written never ends its work.

A full disk, a terminal that has gone or a reader that went away is remembered instead of raised, and what is printed
from then on goes nowhere: a restore or a failover goes on, and its command says at its end that its output was lost.
Characters that the encoding does not have are replaced.

What is printed may come from anywhere: a workload's last words, a name, a peer's message. So what could steer a
terminal or hide text is shown escaped, whoever prints it. Only what draws (rich, our own colours) writes past that, by
`styled`.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import re
import select
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO, cast

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_PLAIN = {"✓": "+", "✗": "x", "▶": ">", "·": ".", "↻": "~", "→": "->", "←": "<-", "…": "..."}
_ERRORS = "drengine-plain"
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but for tab and newline
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # the order of letters
    "\u200b\u2028\u2029\u2060-\u2064\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"  # seen by nobody
)


def harmless(text: str) -> str:
    """`text` with what could steer a terminal or hide something shown like ``\\x1b``; lines and tabs stay."""
    return _STEERING.sub(_escaped, text.replace("\r\n", "\n"))


def printable(text: str) -> str:
    """`text` without what could steer a terminal or break a line: names and messages may come from anywhere."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def styled(stream: TextIO) -> TextIO:
    """Where to write what steers the terminal on purpose. Whoever writes there makes foreign text `harmless` first."""
    return getattr(stream, "rich_proxied_file", stream)


def _escaped(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


class OutputStream(io.TextIOWrapper):
    """Text to a file descriptor, which stays open.

    Attributes:
        failure: why nothing is written any more, or None.
    """

    def __init__(self, descriptor: int, like: TextIO | None) -> None:
        """`like` is the stream that it stands for, with its encoding and buffering."""
        self._raw = _Raw(descriptor)
        super().__init__(
            io.BufferedWriter(self._raw),
            encoding=like.encoding if like else "utf-8",
            errors=_ERRORS,
            line_buffering=getattr(like, "line_buffering", False),
            write_through=getattr(like, "write_through", False),
        )

    @property
    def failure(self) -> OSError | None:
        """See the class."""
        return self._raw.failure

    def write(self, text: str) -> int:
        """Write it so that it can do no harm."""
        super().write(harmless(text))
        return len(text)

    def write_styled(self, text: str) -> int:
        """Write it as it is."""
        return super().write(text)

    @property
    def rich_proxied_file(self) -> TextIO:
        """Where rich writes that finds this as standard output; the name is its own (rich.file_proxy)."""
        return cast("TextIO", _Styled(self))


class _Styled(io.TextIOBase):
    """The same stream, for what draws."""

    def __init__(self, stream: OutputStream) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def write(self, text: str) -> int:
        return self._stream.write_styled(text)

    def flush(self) -> None:
        self._stream.flush()


class _Raw(io.RawIOBase):
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: ReadableBuffer) -> int:
        while self.failure is None:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # somebody made it so; whoever reads needs a moment
                select.select([], [self._descriptor], [])
            except OSError as error:
                self.failure = error
        return memoryview(data).nbytes


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """Have `print` and all others write by way of OutputStream; a stream that was closed is replaced by one that fails.

    Streams that are no files, such as those that a test reads, are left alone.
    """
    before = sys.stdin, sys.stdout, sys.stderr
    # In this order: what is opened next must not become standard output, or a file would be written by `print`.
    if sys.stdin is None:
        sys.stdin = open(os.open(os.devnull, os.O_RDONLY), encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = _stream(sys.stdout, os.O_RDONLY)
    sys.stderr = _stream(sys.stderr, os.O_WRONLY)
    try:
        yield
    finally:
        for each in (sys.stdout, sys.stderr):
            if each is not None:
                each.flush()
        sys.stdin, sys.stdout, sys.stderr = before


def _stream(stream: TextIO | None, instead: int) -> TextIO:
    """Args:
    stream: what Python opened, or None when it was closed.
    instead: how to open nothing in its place: O_RDONLY, so that writing fails, or O_WRONLY, so that it does not matter.
    """
    if stream is None:
        return OutputStream(os.open(os.devnull, instead), None)
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    return OutputStream(descriptor, stream)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(each, "?") for each in error.object[error.start : error.end]), error.end


codecs.register_error(_ERRORS, _plain)
