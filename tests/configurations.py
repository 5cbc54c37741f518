"""Configuration files of a target, and of a source with two volumes behind the tap, all in one folder."""

from __future__ import annotations

TARGET = """\
store = "store"
listen = "127.0.0.1:{port}"
nbd_socket = "recovery.sock"
"""
AGENT = """\
source = "shop"
target = "127.0.0.1:{port}"
state_directory = "agent"
[nbd]
listen = "unix:tap.sock"
journal = "64MiB"
[[volume]]
name = "data"
path = "data.img"
[[volume]]
name = "log"
path = "log.img"
"""
