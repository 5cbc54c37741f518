"""The handshake of one NBD connection, sans-I/O: options in, answers and questions to the shell out.

Legal moves (fixed newstyle only)::

    FLAGS --client flags--> OPTIONS --LIST, INFO, GO, EXPORT_NAME--> ASKING --the shell's answer--> OPTIONS or DONE
                            OPTIONS --STARTTLS--> SECURING --tls_started--> OPTIONS (everything negotiated is forgotten)
                            OPTIONS --ABORT, or EXPORT_NAME refused--> ENDED

In ASKING and SECURING nothing more is parsed. Bytes behind STARTTLS are refused: they came unprotected and would
be taken for protected ones (fault 39). Where TLS is required, only STARTTLS and ABORT are served before it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from drengine.model.errors import DrengineError
from drengine.nbd import numbers
from drengine.nbd.errors import NBD_LIMIT, NBD_PROTOCOL
from drengine.nbd.export import ExportInfo
from drengine.nbd.limits import NbdLimits
from drengine.nbd.numbers import Info, Option, OptionReply


class TlsPolicy(enum.Enum):
    """Whether a connection is or must be encrypted."""

    OFF = "off"
    OPTIONAL = "optional"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class NamesWanted:
    """LIST: the shell answers with `send_names`."""


@dataclass(frozen=True, slots=True)
class ExportWanted:
    """An option concerns this export: the shell answers with `export_found` or `export_refused`."""

    name: str


@dataclass(frozen=True, slots=True)
class TlsWanted:
    """The shell sends what there is, wraps the connection in TLS, and calls `tls_started`."""


class State(enum.Enum):
    """Where the handshake stands."""

    FLAGS = enum.auto()
    OPTIONS = enum.auto()
    ASKING = enum.auto()
    SECURING = enum.auto()
    DONE = enum.auto()
    ENDED = enum.auto()


class _BadOptionError(Exception):
    """An option's data is malformed; it is answered with ERR_INVALID."""


class _Fields:
    """Reads an option's data; anything missing is a _BadOptionError."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def take(self, length: int) -> bytes:
        if length > len(self._data):
            raise _BadOptionError("the option ends inside a field")
        field, self._data = bytes(self._data[:length]), self._data[length:]
        return field

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def end(self) -> None:
        if self._data:
            raise _BadOptionError("the option has bytes behind its last field")


class Handshake:
    """One connection's handshake.

    Attributes:
        state: see the module.
        structured: structured replies were agreed.
        context_export: the export for which base:allocation was agreed, or None.
    """

    def __init__(self, limits: NbdLimits, tls: TlsPolicy) -> None:
        self._limits = limits
        self._tls = tls
        self._secured = False
        self._no_zeroes = False
        self._options = 0
        self._option = Option.ABORT
        self._infos: frozenset[int] = frozenset()
        self._queries: list[bytes] = []
        self.state = State.FLAGS
        self.structured = False
        self.context_export: str | None = None
        self.output: list[bytes] = [
            numbers.GREETING.pack(
                numbers.INIT_MAGIC,
                numbers.OPTION_MAGIC,
                numbers.FLAG_FIXED_NEWSTYLE | numbers.FLAG_NO_ZEROES,
            )
        ]
        self._name = ""

    def feed(self, data: memoryview) -> tuple[int, NamesWanted | ExportWanted | TlsWanted | None]:
        """Parse at most one step from `data`; returns bytes used (0: more are needed) and a question.

        Raises:
            DrengineError: NBD_PROTOCOL or NBD_LIMIT; the connection must be closed.
        """
        if self.state is State.FLAGS:
            return self._client_flags(data), None
        if self.state is not State.OPTIONS or len(data) < numbers.OPTION.size:
            return 0, None
        magic, option, length = numbers.OPTION.unpack_from(data)
        if magic != numbers.OPTION_MAGIC:
            raise DrengineError(NBD_PROTOCOL, "an option does not begin with its magic")
        if length > self._limits.option_bytes_max:
            self._say(option, OptionReply.ERR_TOO_BIG, b"option too long")
            raise DrengineError(NBD_LIMIT, f"option {option} announces {length} bytes")
        used = numbers.OPTION.size + length
        if len(data) < used:
            return 0, None
        self._options += 1
        if self._options > self._limits.options_max:
            raise DrengineError(NBD_LIMIT, f"more than {self._limits.options_max} options")
        try:
            return used, self._serve(option, data[numbers.OPTION.size : used], trailing=len(data) > used)
        except _BadOptionError as error:
            if option == Option.EXPORT_NAME:
                raise DrengineError(NBD_PROTOCOL, f"EXPORT_NAME: {error}") from error
            self._say(option, OptionReply.ERR_INVALID, str(error).encode())
            return used, None

    def send_names(self, names: Iterable[str]) -> None:
        """Answer NamesWanted."""
        for name in list(names)[: self._limits.names_listed_max]:
            encoded = name.encode()
            self._say(Option.LIST, OptionReply.SERVER, numbers.U32.pack(len(encoded)) + encoded)
        self._say(Option.LIST, OptionReply.ACK)
        self.state = State.OPTIONS

    def export_found(self, info: ExportInfo) -> None:
        """Answer ExportWanted; `state` is DONE when transmission begins."""
        self.state = State.OPTIONS
        option = self._option
        if option in (Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT):
            self._contexts(info)
            return
        if option != Option.INFO and self.context_export != self._name:
            self.context_export = None
        flags = transmission_flags(info, structured=self.structured)
        if option == Option.EXPORT_NAME:
            self.output.append(numbers.EXPORT_NAME_REPLY.pack(info.size_bytes, flags))
            if not self._no_zeroes:
                self.output.append(numbers.EXPORT_NAME_ZEROES)
            self.state = State.DONE
            return
        self._say(option, OptionReply.INFO, numbers.INFO_EXPORT.pack(Info.EXPORT, info.size_bytes, flags))
        self._say(
            option,
            OptionReply.INFO,
            numbers.INFO_BLOCK_SIZE.pack(
                Info.BLOCK_SIZE,
                max(info.block_bytes_min, info.sector_bytes),
                max(info.block_bytes_preferred, info.sector_bytes),
                info.block_bytes_max,
            ),
        )
        if Info.NAME in self._infos:
            self._say(option, OptionReply.INFO, numbers.U16.pack(Info.NAME) + info.name.encode())
        if Info.DESCRIPTION in self._infos and info.description:
            text = info.description.encode()[: self._limits.option_bytes_max]
            self._say(option, OptionReply.INFO, numbers.U16.pack(Info.DESCRIPTION) + text)
        self._say(option, OptionReply.ACK)
        if option == Option.GO:
            self.state = State.DONE

    def export_refused(self, code: OptionReply, message: str) -> None:
        """Answer ExportWanted with an error; EXPORT_NAME has no way to say so and ends the connection."""
        if self._option == Option.EXPORT_NAME:
            self.state = State.ENDED
        else:
            self._say(self._option, code, message.encode()[: self._limits.option_bytes_max])
            self.state = State.OPTIONS

    def tls_started(self) -> None:
        """Answer TlsWanted: the connection is protected now, and what was agreed before counts no more."""
        self._secured = True
        self.structured = False
        self.context_export = None
        self.state = State.OPTIONS

    def _client_flags(self, data: memoryview) -> int:
        if len(data) < numbers.CLIENT_FLAGS.size:
            return 0
        (flags,) = numbers.CLIENT_FLAGS.unpack_from(data)
        if not flags & numbers.FLAG_FIXED_NEWSTYLE:
            raise DrengineError(NBD_PROTOCOL, "the client does not speak fixed newstyle")
        if flags & ~(numbers.FLAG_FIXED_NEWSTYLE | numbers.FLAG_NO_ZEROES):
            raise DrengineError(NBD_PROTOCOL, f"unknown client flags {flags:#x}")
        self._no_zeroes = bool(flags & numbers.FLAG_NO_ZEROES)
        self.state = State.OPTIONS
        return numbers.CLIENT_FLAGS.size

    def _serve(self, option: int, data: memoryview, *, trailing: bool) -> NamesWanted | ExportWanted | TlsWanted | None:
        if option == Option.ABORT:
            self._say(option, OptionReply.ACK)
            self.state = State.ENDED
            return None
        if self._tls is TlsPolicy.REQUIRED and not self._secured and option != Option.STARTTLS:
            if option == Option.EXPORT_NAME:
                raise DrengineError(NBD_PROTOCOL, "EXPORT_NAME without the TLS that is required")
            self._say(option, OptionReply.ERR_TLS_REQD, b"this server serves nothing without TLS")
            return None
        fields = _Fields(data)
        if option == Option.STARTTLS:
            return self._start_tls(fields, trailing=trailing)
        if option == Option.LIST:
            fields.end()
            self.state = State.ASKING
            return NamesWanted()
        if option == Option.STRUCTURED_REPLY:
            fields.end()
            self.structured = True
            self._say(option, OptionReply.ACK)
            return None
        if option == Option.EXPORT_NAME:
            return self._ask(Option.EXPORT_NAME, self._checked_name(fields.take(len(data))))
        if option in (Option.INFO, Option.GO):
            name = self._checked_name(fields.take(fields.u32()))
            self._infos = frozenset(fields.u16() for _ in range(fields.u16()))
            fields.end()
            return self._ask(Option(option), name)
        if option in (Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT):
            if not self.structured:
                raise _BadOptionError("contexts need structured replies")
            if option == Option.SET_META_CONTEXT:
                self.context_export = None
            name = self._checked_name(fields.take(fields.u32()))
            self._queries = [fields.take(fields.u32()) for _ in range(fields.u32())]
            fields.end()
            return self._ask(Option(option), name)
        self._say(option, OptionReply.ERR_UNSUP, b"unknown option")
        return None

    def _start_tls(self, fields: _Fields, *, trailing: bool) -> TlsWanted | None:
        fields.end()
        if self._tls is TlsPolicy.OFF:
            self._say(Option.STARTTLS, OptionReply.ERR_UNSUP, b"this server has no certificate")
            return None
        if self._secured:
            raise _BadOptionError("TLS has been started already")
        if trailing:
            raise DrengineError(NBD_PROTOCOL, "unprotected bytes follow STARTTLS")
        self._say(Option.STARTTLS, OptionReply.ACK)
        self.state = State.SECURING
        return TlsWanted()

    def _ask(self, option: Option, name: str) -> ExportWanted:
        self._option, self._name = option, name
        self.state = State.ASKING
        return ExportWanted(name)

    def _checked_name(self, encoded: bytes) -> str:
        if len(encoded) > self._limits.name_bytes_max:
            raise _BadOptionError("the export's name is too long")
        try:
            name = encoded.decode()
        except UnicodeDecodeError as error:
            raise _BadOptionError("the export's name is not UTF-8") from error
        if not name.isprintable():
            raise _BadOptionError("the export's name is not printable")
        return name

    def _contexts(self, info: ExportInfo) -> None:
        listing = self._option == Option.LIST_META_CONTEXT
        wanted = numbers.CONTEXT_NAME in self._queries
        if listing:
            wanted = wanted or not self._queries or b"base:" in self._queries
        wanted = wanted and info.can_block_status
        if wanted:
            self.context_export = self.context_export if listing else self._name
            identifier = 0 if listing else numbers.CONTEXT_ID
            body = numbers.U32.pack(identifier) + numbers.CONTEXT_NAME
            self._say(self._option, OptionReply.META_CONTEXT, body)
        self._say(self._option, OptionReply.ACK)

    def _say(self, option: int, kind: OptionReply, data: bytes = b"") -> None:
        header = numbers.OPTION_REPLY.pack(numbers.OPTION_REPLY_MAGIC, option, kind, len(data))
        self.output.append(header + data)


def transmission_flags(info: ExportInfo, *, structured: bool) -> int:
    """What the client is told that this export takes."""
    writable = not info.read_only
    return (
        numbers.SENDS_FLAGS
        | (numbers.SENDS_READ_ONLY if info.read_only else 0)
        | (numbers.SENDS_FLUSH if info.can_flush else 0)
        | (numbers.SENDS_FUA if info.can_fua else 0)
        | (numbers.SENDS_TRIM if info.can_trim and writable else 0)
        | (numbers.SENDS_WRITE_ZEROES if info.can_zero and writable else 0)
        | (numbers.SENDS_FAST_ZERO if info.can_zero and info.can_fast_zero and writable else 0)
        | (numbers.SENDS_DF if structured else 0)
        | (numbers.SENDS_MULTI_CONN if info.can_multi_conn else 0)
        | (numbers.SENDS_CACHE if info.can_cache else 0)
    )
