"""A small blocking NBD client: fixed newstyle, simple replies, one request at a time.

It exists for the demonstration, tests and benchmarks, which must not need a kernel client, root or libnbd.
Source: the NBD protocol, https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

from drengine.model.errors import DrengineError, error_kind

NBD_CLIENT = error_kind(
    "nbd-client",
    29,
    "An NBD server refused a request or broke the protocol.",
    "Check the export's name with `nbdinfo --list` and look at the server's log.",
)

DEFAULT_PORT = 10809
CERTIFICATE_NAMES = ("ca-cert.pem", "client-cert.pem", "client-key.pem")
"""What libnbd calls a client's files, in a folder that its URI names."""
_INIT = b"NBDMAGIC"
_OPTION = b"IHAVEOPT"
_OPTION_REPLY = 0x3E889045565A9
_REQUEST = struct.Struct(">IHHQQI")
_REQUEST_MAGIC = 0x25609513
_REPLY = struct.Struct(">IIQ")
_REPLY_MAGIC = 0x67446698
_OPT_ABORT, _OPT_LIST, _OPT_STARTTLS, _OPT_GO, _REP_ACK, _REP_INFO = 2, 3, 5, 7, 1, 3
_READ, _WRITE, _DISC, _FLUSH, _TRIM, _WRITE_ZEROES = 0, 1, 2, 3, 4, 6
_LENGTH_MAX = 32 << 20
_OPTION_REPLY_MAX = 65536


def with_certificates(uri: str, directory: str | Path) -> str:
    """An ``nbd://`` URI as one over TLS, with the credentials (CERTIFICATE_NAMES) of a directory; others stay."""
    if not uri.startswith("nbd://"):
        return uri
    return f"nbds://{uri.removeprefix('nbd://')}?tls-certificates={quote(str(directory))}"


@dataclass(frozen=True, slots=True)
class NbdAddress:
    """What an NBD URI says.

    Attributes:
        place: a unix socket's path, or host and port.
        export: name.
        tls: the scheme asks for TLS.
        certificates: directory of CERTIFICATE_NAMES.
    """

    place: str | tuple[str, int]
    export: str
    tls: bool = False
    certificates: str = ""

    @staticmethod
    def parse(uri: str) -> NbdAddress:
        """From ``nbd://``, ``nbds://``, ``nbd+unix://`` or ``nbds+unix://``.

        Raises:
            DrengineError: NBD_CLIENT.
        """
        try:
            parts = urlsplit(uri)
            export, query = unquote(parts.path.removeprefix("/")), parse_qs(parts.query)
            certificates = query.get("tls-certificates", [""])[0]
            if parts.scheme in {"nbd+unix", "nbds+unix"}:
                return NbdAddress(query["socket"][0], export, parts.scheme.startswith("nbds"), certificates)
            if parts.scheme in {"nbd", "nbds"} and parts.hostname:
                place = (parts.hostname, parts.port or DEFAULT_PORT)
                return NbdAddress(place, export, parts.scheme == "nbds", certificates)
        except (ValueError, KeyError):
            pass
        raise DrengineError(NBD_CLIENT, f"{uri[:200]!r} is no NBD address", hint="Write nbd://HOST:PORT/EXPORT.")

    def context(self) -> ssl.SSLContext | None:
        """For connecting; None for a plain connection. TLS 1.3, both sides authenticated.

        Raises:
            DrengineError: NBD_CLIENT, the certificates can't be used.
        """
        if not self.tls:
            return None
        folder = Path(self.certificates)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = not isinstance(self.place, str)
        try:
            ca, certificate, key = (folder / name for name in CERTIFICATE_NAMES)
            context.load_verify_locations(cafile=ca)
            context.load_cert_chain(certificate, key)
        except (OSError, ValueError) as error:
            raise DrengineError(NBD_CLIENT, f"the certificates in {folder} can't be used: {error}") from error
        return context


@dataclass(frozen=True, slots=True)
class Greeting:
    """How an NBD server answered; `certificate` (DER) is what it showed, None without TLS."""

    certificate: bytes | None


class NbdClient:
    """One connection to one export."""

    def __init__(
        self,
        address: str | tuple[str, int],
        export: str | None,
        *,
        timeout_seconds: float = 30.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Connect to a unix socket's path or a (host, port) and open `export`; with `tls` nothing goes in the clear.

        Without an export it is only asked what it offers, which shows that it would serve us at all.

        Raises:
            DrengineError: NBD_CLIENT when the server refuses; OSError when it can't be reached.
        """
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self._socket: socket.socket = socket.socket(family, socket.SOCK_STREAM)
        self._server_name = None if isinstance(address, str) else address[0]
        self._cookie = 0
        self._opened = export is not None
        self.size_bytes = 0
        self.block_bytes_min = 1
        try:
            self._socket.settimeout(timeout_seconds)
            self._socket.connect(address)
            if family == socket.AF_INET:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._negotiate(export, tls)
        except BaseException:
            self._socket.close()
            raise

    @staticmethod
    def of(uri: str, *, timeout_seconds: float = 30.0) -> NbdClient:
        """Connect to an NBD URI.

        Raises:
            DrengineError: NBD_CLIENT when it is none or the server refuses; OSError when it can't be reached.
        """
        address = NbdAddress.parse(uri)
        return NbdClient(address.place, address.export, timeout_seconds=timeout_seconds, tls=address.context())

    @staticmethod
    def greet(uri: str, *, timeout_seconds: float) -> Greeting:
        """Connect to the server of an NBD URI and ask what it offers; nothing is opened.

        Raises:
            DrengineError, OSError: as `of`; ssl.SSLError where TLS fails.
        """
        address = NbdAddress.parse(uri)
        with NbdClient(address.place, None, timeout_seconds=timeout_seconds, tls=address.context()) as client:
            stream = client._socket
            return Greeting(stream.getpeercert(binary_form=True) if isinstance(stream, ssl.SSLSocket) else None)

    def _negotiate(self, export: str | None, tls: ssl.SSLContext | None) -> None:
        if self._receive(16) != _INIT + _OPTION:
            raise DrengineError(NBD_CLIENT, "the server does not speak NBD's newstyle handshake")
        flags = struct.unpack(">H", self._receive(2))[0]
        self._socket.sendall(struct.pack(">I", flags & 3))
        if tls is not None:
            self._option(_OPT_STARTTLS, b"", "TLS")
            self._socket = tls.wrap_socket(self._socket, server_hostname=self._server_name)
        if export is None:
            self._option(_OPT_LIST, b"", "the list of exports")
            return
        name = export.encode()
        body = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        self._option(_OPT_GO, body, f"export {export!r}")

    def _option(self, option: int, body: bytes, what: str) -> None:
        """Ask for an option and take its answers until it is granted.

        Raises:
            DrengineError: NBD_CLIENT, it is refused.
        """
        self._socket.sendall(_OPTION + struct.pack(">II", option, len(body)) + body)
        while True:
            magic, _, kind, length = struct.unpack(">QIII", self._receive(20))
            if magic != _OPTION_REPLY or length > _OPTION_REPLY_MAX:
                raise DrengineError(NBD_CLIENT, "the server's answer to the handshake is malformed")
            data = self._receive(length)
            if kind == _REP_ACK:
                return
            if kind & 0x80000000:
                raise DrengineError(NBD_CLIENT, f"{what} refused: {data.decode('utf-8', 'replace')}")
            if kind == _REP_INFO and data[:2] == b"\0\0":
                self.size_bytes = struct.unpack(">Q", data[2:10])[0]
            if kind == _REP_INFO and data[:2] == b"\0\3":
                self.block_bytes_min = struct.unpack(">I", data[2:6])[0]

    def _receive(self, length: int) -> bytearray:
        buffer = bytearray(length)
        view = memoryview(buffer)
        while view:
            received = self._socket.recv_into(view)
            if not received:
                raise ConnectionResetError("the NBD server closed the connection")
            view = view[received:]
        return buffer

    def _call(self, command: int, offset: int, length: int, data: bytes | memoryview = b"", flags: int = 0) -> None:
        self._cookie += 1
        header = _REQUEST.pack(_REQUEST_MAGIC, flags, command, self._cookie, offset, length)
        self._socket.sendall(header + data if len(data) <= 65536 else header)
        if len(data) > 65536:
            self._socket.sendall(data)
        magic, error, cookie = _REPLY.unpack(self._receive(_REPLY.size))
        if magic != _REPLY_MAGIC or cookie != self._cookie:
            raise DrengineError(NBD_CLIENT, "the server's reply is malformed")
        if error:
            raise DrengineError(NBD_CLIENT, f"the server answered error {error} to command {command} at {offset}")

    def read(self, offset: int, length: int) -> bytearray:
        """Read `length` bytes (at most 32 MiB) at `offset`."""
        if length > _LENGTH_MAX:
            raise ValueError("a read is at most 32 MiB")
        self._call(_READ, offset, length)
        return self._receive(length)

    def write(self, offset: int, data: bytes | memoryview, *, fua: bool = False) -> None:
        """Write at `offset`; with `fua` it returns only when the data is durable."""
        self._call(_WRITE, offset, len(data), data, int(fua))

    def zero(self, offset: int, length: int) -> None:
        """Write zeroes."""
        self._call(_WRITE_ZEROES, offset, length)

    def trim(self, offset: int, length: int) -> None:
        """Discard a range."""
        self._call(_TRIM, offset, length)

    def flush(self) -> None:
        """Return when all completed writes are durable."""
        self._call(_FLUSH, 0, 0)

    def close(self) -> None:
        """Say goodbye and close."""
        goodbye = _REQUEST.pack(_REQUEST_MAGIC, 0, _DISC, 0, 0, 0)
        if not self._opened:
            goodbye = _OPTION + struct.pack(">II", _OPT_ABORT, 0)
        with contextlib.suppress(OSError):  # a server that is gone needs no goodbye
            self._socket.sendall(goodbye)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
