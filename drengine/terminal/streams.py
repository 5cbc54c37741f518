"""The way out for everything that a command prints, whoever prints it: what can't be written never ends its work.

A full disk, a terminal that has gone or a reader that went away is remembered instead of raised, and what is printed
from then on goes nowhere: a restore or a failover goes on, and its command says at its end that its output was lost.
Characters that the encoding does not have are replaced.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_PLAIN = {"✓": "+", "✗": "x", "▶": ">", "·": ".", "↻": "~", "→": "->", "←": "<-", "…": "..."}
_ERRORS = "drengine-plain"


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
