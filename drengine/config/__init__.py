"""Configuration: each option is defined once, and from that come the parser, the help and the reference page."""

from drengine.config.kinds import (
    ADDRESS,
    COUNT,
    DURATION,
    FLAG,
    NETWORKS,
    PATH,
    RATE,
    SIZE,
    TABLE,
    TEXT,
    WORDS,
    Address,
    choice,
    parse_duration,
    parse_size,
)
from drengine.config.options import BAD_CONFIG, REQUIRED, load, option, parse, section, tables
from drengine.config.reference import example, reference

__all__ = [
    "ADDRESS",
    "BAD_CONFIG",
    "COUNT",
    "DURATION",
    "FLAG",
    "NETWORKS",
    "PATH",
    "RATE",
    "REQUIRED",
    "SIZE",
    "TABLE",
    "TEXT",
    "WORDS",
    "Address",
    "choice",
    "example",
    "load",
    "option",
    "parse",
    "parse_duration",
    "parse_size",
    "reference",
    "section",
    "tables",
]
