"""MQTT 5 packets as a broker reads and writes them (OASIS, MQTT Version 5.0), as far as control messages need: QoS 0
and 1, clean sessions, no topic aliases, no shared subscriptions. What a client sends is judged here.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

_BYTES = frozenset({0x01, 0x17, 0x19, 0x24, 0x25, 0x28, 0x29, 0x2A})
_SHORTS = frozenset({0x13, 0x21, 0x22, 0x23})
_WORDS = frozenset({0x02, 0x11, 0x18, 0x27})
_TEXTS = frozenset({0x03, 0x08, 0x12, 0x15, 0x1A, 0x1C, 0x1F})
_BINARIES = frozenset({0x09, 0x16})
_NUMBER, _PAIR = 0x0B, 0x26
_EXPIRY, _ALIAS, _RECEIVE_MAX, _PACKET_MAX = 0x02, 0x23, 0x21, 0x27
FILTERS_MAX = 64


class Kind(enum.IntEnum):
    """Of packets."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14


class Reason(enum.IntEnum):
    """Reason codes that are used."""

    SUCCESS = 0x00
    GRANTED_QOS_1 = 0x01
    WITH_WILL = 0x04
    NO_SUBSCRIPTION = 0x11
    MALFORMED = 0x81
    PROTOCOL = 0x82
    NOT_AUTHORIZED = 0x87
    BUSY = 0x89
    TAKEN_OVER = 0x8E
    TOO_LARGE = 0x95
    QUOTA = 0x97


class PacketError(ValueError):
    """A client broke the protocol. `reason` is what it is told."""

    def __init__(self, message: str, reason: Reason = Reason.MALFORMED) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Publish:
    """A message; `number` 0 with QoS 0. `expiry_seconds` None: it holds for ever."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    number: int = 0
    expiry_seconds: int | None = None

    def encoded(self, *, qos: int, retain: bool, number: int) -> bytes:
        """As it goes to a subscriber."""
        properties = b"" if self.expiry_seconds is None else bytes([_EXPIRY]) + self.expiry_seconds.to_bytes(4)
        shown = number.to_bytes(2) if qos else b""
        body = _text(self.topic) + shown + _number(len(properties)) + properties + self.payload
        return _packet(Kind.PUBLISH, body, flags=qos << 1 | retain)


@dataclass(frozen=True, slots=True)
class Connect:
    """How a client begins. `receive_max`: messages of QoS 1 that may be under way to it; `packet_max` 0: any size."""

    client_id: str
    keepalive_seconds: int
    will: Publish | None
    receive_max: int
    packet_max: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """One filter of a SUBSCRIBE, with its options."""

    filter: str
    qos: int
    no_local: bool
    keeps_flag: bool
    sends_retained: bool


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Filters that are wanted."""

    number: int
    wanted: tuple[Wanted, ...]


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Filters that are not wanted any more."""

    number: int
    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Puback:
    """A message of QoS 1 has arrived."""

    number: int


@dataclass(frozen=True, slots=True)
class Ping:
    """A sign of life."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The client leaves; `has_will`: its will is published all the same."""

    has_will: bool


Packet = Connect | Publish | Subscribe | Unsubscribe | Puback | Ping | Disconnect


def parse(first: int, body: bytes) -> Packet:
    """A packet from its first byte and what follows its length.

    Raises:
        PacketError: it is none that a client may send here.
    """
    kind, flags, at = first >> 4, first & 0x0F, _Cursor(body)
    if kind == Kind.PUBLISH:
        return _publish(at, flags)
    if flags != (2 if kind in (Kind.SUBSCRIBE, Kind.UNSUBSCRIBE) else 0):
        raise PacketError("reserved flags are set")
    match kind:
        case Kind.CONNECT:
            return _connect(at)
        case Kind.PUBACK:
            return Puback(at.short())
        case Kind.SUBSCRIBE:
            return _subscribe(at)
        case Kind.UNSUBSCRIBE:
            number, _ = at.short(), at.properties()
            return Unsubscribe(number, tuple(_filters(at)))
        case Kind.PINGREQ:
            return Ping()
        case Kind.DISCONNECT:
            return Disconnect(bool(body) and at.byte() == Reason.WITH_WILL)
    raise PacketError(f"packets of kind {kind} are not understood", Reason.PROTOCOL)


def connack(reason: Reason, *, packet_max: int, client_id: str = "") -> bytes:
    """The answer to CONNECT, with what this broker can't do, and the id that it gave to a client without one."""
    able = bytes([0x24, 1, 0x29, 0, 0x2A, 0, 0x11]) + bytes(4) + bytes([_PACKET_MAX]) + packet_max.to_bytes(4)
    able += b"\x12" + _text(client_id) if client_id else b""
    return _packet(Kind.CONNACK, bytes([0, reason]) + _number(len(able)) + able)


def puback(number: int, reason: Reason) -> bytes:
    """The answer to a message of QoS 1."""
    return _packet(Kind.PUBACK, number.to_bytes(2) + bytes([reason]))


def suback(number: int, reasons: Sequence[int], *, kind: Kind = Kind.SUBACK) -> bytes:
    """The answer to SUBSCRIBE, or UNSUBSCRIBE."""
    return _packet(kind, number.to_bytes(2) + b"\0" + bytes(reasons))


def pingresp() -> bytes:
    """The answer to PINGREQ."""
    return _packet(Kind.PINGRESP, b"")


def disconnect(reason: Reason) -> bytes:
    """We leave, or have the client leave."""
    return _packet(Kind.DISCONNECT, bytes([reason]))


class _Cursor:
    """Reads a packet's fields, and never beyond its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) < count:
            raise PacketError("a packet is cut short")
        self._at += count
        return taken

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)

    @property
    def is_empty(self) -> bool:
        return self._at >= len(self._data)

    def byte(self) -> int:
        return self.take(1)[0]

    def short(self) -> int:
        return int.from_bytes(self.take(2))

    def word(self) -> int:
        return int.from_bytes(self.take(4))

    def number(self) -> int:
        value = 0
        for place in range(4):
            byte = self.byte()
            value |= (byte & 0x7F) << 7 * place
            if not byte & 0x80:
                return value
        raise PacketError("a number is too long")

    def binary(self) -> bytes:
        return self.take(self.short())

    def text(self) -> str:
        try:
            text = self.binary().decode()
        except UnicodeDecodeError as error:
            raise PacketError("a text is not UTF-8") from error
        if "\0" in text:
            raise PacketError("a text has NUL")
        return text

    def properties(self) -> dict[int, int]:
        """Those that are numbers; the others are passed over."""
        inside, found = _Cursor(self.take(self.number())), dict[int, int]()
        while not inside.is_empty:
            name = inside.number()
            if name in _BYTES:
                found[name] = inside.byte()
            elif name in _SHORTS:
                found[name] = inside.short()
            elif name in _WORDS:
                found[name] = inside.word()
            elif name in _TEXTS or name in _BINARIES:
                inside.binary()
            elif name == _PAIR:
                inside.binary()
                inside.binary()
            elif name == _NUMBER:
                inside.number()
            else:
                raise PacketError(f"property {name} is unknown")
        return found


def _publish(at: _Cursor, flags: int) -> Publish:
    qos = flags >> 1 & 3
    if qos > 1:
        raise PacketError("QoS 2 is not offered", Reason.PROTOCOL)
    topic = at.text()
    number = at.short() if qos else 0
    properties = at.properties()
    if _ALIAS in properties or not topic or (qos and not number):
        raise PacketError("a message has a topic alias, no topic or no number", Reason.PROTOCOL)
    return Publish(topic, at.rest(), qos, bool(flags & 1), number, properties.get(_EXPIRY))


def _connect(at: _Cursor) -> Connect:
    if at.text() != "MQTT" or at.byte() != 5:
        raise PacketError("it does not speak MQTT 5", Reason.PROTOCOL)
    flags, keepalive, properties = at.byte(), at.short(), at.properties()
    client_id, will = at.text(), None
    if flags & 1:
        raise PacketError("a reserved flag is set")
    if flags & 4:
        qos = flags >> 3 & 3
        if qos > 1:
            raise PacketError("QoS 2 is not offered", Reason.PROTOCOL)
        at.properties()
        will = Publish(at.text(), at.binary(), qos, bool(flags & 32))
    return Connect(client_id, keepalive, will, properties.get(_RECEIVE_MAX) or 0xFFFF, properties.get(_PACKET_MAX, 0))


def _subscribe(at: _Cursor) -> Subscribe:
    number, _ = at.short(), at.properties()
    wanted: list[Wanted] = []
    while not at.is_empty and len(wanted) < FILTERS_MAX:
        filter, options = at.text(), at.byte()
        wanted.append(Wanted(filter, min(options & 3, 1), bool(options & 4), bool(options & 8), options >> 4 & 3 != 2))
    if not wanted or not at.is_empty or not number:
        raise PacketError("too many filters, or none", Reason.PROTOCOL)
    return Subscribe(number, tuple(wanted))


def _filters(at: _Cursor) -> list[str]:
    found: list[str] = []
    while not at.is_empty and len(found) < FILTERS_MAX:
        found.append(at.text())
    if not found or not at.is_empty:
        raise PacketError("too many filters, or none", Reason.PROTOCOL)
    return found


def _packet(kind: Kind, body: bytes, *, flags: int = 0) -> bytes:
    return bytes([kind << 4 | flags]) + _number(len(body)) + body


def _number(value: int) -> bytes:
    encoded = bytearray()
    while True:
        value, low = divmod(value, 128)
        encoded.append(low | (0x80 if value else 0))
        if not value:
            return bytes(encoded)


def _text(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(2) + data
