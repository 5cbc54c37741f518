"""Structured logs on standard error: JSON lines for machines, one readable line for people."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from datetime import UTC, datetime

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_PLAIN = "\x1b[0m"
_COLOURS = {logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m", logging.CRITICAL: "\x1b[1;31m"}


def setup_logging(*, level: str = "info", form: str = "auto") -> None:
    """Send the process's logs to standard error.

    Args:
        level: debug, info, warning or error.
        form: json, text, or auto: text at a terminal, else json.
    """
    if form == "auto":
        form = "text" if sys.stderr.isatty() else "json"
    # A command's standard error lets no colour through but by this; each line is made harmless here.
    handler = logging.StreamHandler(getattr(sys.stderr, "rich_proxied_file", sys.stderr))
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.raiseExceptions = False  # a full disk or a closed pipe under the log must not end the service


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """What was given as `extra`."""
    return {key: value for key, value in vars(record).items() if key not in _STANDARD and not key.startswith("_")}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message and the extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in fields_of(record).items() if key not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """Time, level, message, key=value."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        moment = time.strftime("%H:%M:%S", time.gmtime(record.created))
        extra = "".join(f" {key}={value}" for key, value in fields_of(record).items())
        colour = _COLOURS.get(record.levelno, "") if sys.stderr.isatty() and "NO_COLOR" not in os.environ else ""
        said = _one_line(f"{record.getMessage()}{extra}")
        line = f"{moment} {colour}{record.levelname.lower():7}{colour and _PLAIN} {said}"
        if not record.exc_info:
            return line
        return "\n".join([line, *map(_one_line, self.formatException(record.exc_info).split("\n"))])


def _one_line(text: str) -> str:
    """What a peer sent may be in a message: it must neither look like another line nor steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
