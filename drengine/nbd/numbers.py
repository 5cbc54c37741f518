"""The NBD protocol's numbers and layouts, all big endian.

Source: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""

from __future__ import annotations

import enum
import struct

GREETING = struct.Struct(">8s8sH")
INIT_MAGIC = b"NBDMAGIC"
OPTION_MAGIC = b"IHAVEOPT"
FLAG_FIXED_NEWSTYLE = 1
FLAG_NO_ZEROES = 2
CLIENT_FLAGS = struct.Struct(">I")

OPTION = struct.Struct(">8sII")
OPTION_REPLY = struct.Struct(">QIII")
OPTION_REPLY_MAGIC = 0x3E889045565A9


class Option(enum.IntEnum):
    """What a client may ask in the handshake."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class OptionReply(enum.IntEnum):
    """What the server says to an option."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 0x80000001
    ERR_POLICY = 0x80000002
    ERR_INVALID = 0x80000003
    ERR_TLS_REQD = 0x80000005
    ERR_UNKNOWN = 0x80000006
    ERR_SHUTDOWN = 0x80000007
    ERR_TOO_BIG = 0x80000009


class Info(enum.IntEnum):
    """Facts in the answer to INFO and GO."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


INFO_EXPORT = struct.Struct(">HQH")
INFO_BLOCK_SIZE = struct.Struct(">HIII")
EXPORT_NAME_REPLY = struct.Struct(">QH")
EXPORT_NAME_ZEROES = bytes(124)

SENDS_FLAGS = 1 << 0
SENDS_READ_ONLY = 1 << 1
SENDS_FLUSH = 1 << 2
SENDS_FUA = 1 << 3
SENDS_TRIM = 1 << 5
SENDS_WRITE_ZEROES = 1 << 6
SENDS_DF = 1 << 7
SENDS_MULTI_CONN = 1 << 8
SENDS_CACHE = 1 << 10
SENDS_FAST_ZERO = 1 << 11

REQUEST = struct.Struct(">IHHQQI")
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY = struct.Struct(">IIQ")
SIMPLE_REPLY_MAGIC = 0x67446698

CHUNK = struct.Struct(">IHHQI")
CHUNK_MAGIC = 0x668E33EF
CHUNK_DONE = 1
CHUNK_DATA, CHUNK_HOLE, CHUNK_STATUS, CHUNK_ERROR = 1, 2, 5, 0x8001
CHUNK_OFFSET = struct.Struct(">Q")
CHUNK_HOLE_BODY = struct.Struct(">QI")
CHUNK_ERROR_BODY = struct.Struct(">IH")
STATUS_EXTENT = struct.Struct(">II")

CONTEXT_NAME = b"base:allocation"
CONTEXT_ID = 1
U16 = struct.Struct(">H")
U32 = struct.Struct(">I")
