"""What strangers and misbehaving parties do: each attack is a round that is repeated until the campaign ends.

They come from loopback addresses of their own, 127.0.0.2 and on, and yield the processor to the daemons: elsewhere
they would have machines of their own. What they are told is counted, by id.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import resource
import socket
import ssl
import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.synchronize import Event
from random import Random

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from demo.files import SOURCE
from demo.guard import SITE
from drengine.control.message import PACKET_BYTES_MAX
from drengine.enrolment.place import request_for
from drengine.identity.tokens import Invitation
from drengine.model.points import Cut, Mark, PointKind, VolumeGeometry
from drengine.transport.files import TlsFiles
from drengine.wire import events as ev
from drengine.wire.connection import Connection, Role
from drengine.wire.frames import HEADER, FrameType, encode_frame
from tests.fuzz.place import GREEDY, NAMELESS, WEBS, Place
from tests.nbd import wire as nbd
from tests.wire.mutation import mutated, numbered
from tests.wire.samples import BATCH, CONVERSATION, CUT, TELLING, ZEROS, joined, record

ADDRESSES = [f"127.0.0.{number}" for number in range(2, 10)]
ANSWER_SECONDS = 2.0
HELD_SECONDS = 4.0
MANY = 100
HELD: deque[contextlib.ExitStack] = deque(maxlen=30)
PAUSE_SECONDS = 0.5
BURST = 40
ANSWER_BYTES_MAX = 8 << 20
READ_BYTES_MAX = 32 << 20
EPOCH = Mark(b"f" * 16, 1)
VOLUMES = (VolumeGeometry(1, "data", "file:1", 1 << 30),)
PURPOSES = {ev.Purpose.REPLICATE: (0, 0), ev.Purpose.PRESERVE: (9, 0), ev.Purpose.REVERSE: (1, 7)}
SHIPPED = (BATCH, ZEROS, CUT)
SAID = [
    data
    for who, event, data in (*record(CONVERSATION), *record(TELLING))
    if who is Role.AGENT and not isinstance(event, ev.Hello)
]
PASSWORDS = ("admin", "password", "", "vic", "\u0000", "x" * 1024)

CSR = request_for(generate_private_key(SECP256R1()))

Told = Counter[str]
Attack = Callable[[Place, Random, Told], None]
ATTACKS: dict[str, Attack] = {}


def attack(round: Attack) -> Attack:
    """A function becomes an attack of its name."""
    ATTACKS[round.__name__.replace("_", " ")] = round
    return round


def go_on(name: str, place: Place, seed: int, told: Told, stop: Event) -> None:
    """Repeat an attack until the end: what a server does to it is its life."""
    os.nice(19)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    rng = Random(f"{seed}:{name}")
    while not stop.is_set():
        try:
            ATTACKS[name](place, rng, told)
        except ssl.SSLError as error:
            told[f"TLS: {_alert(error)}"] += 1
        except (OSError, http.client.HTTPException):
            told["closed"] += 1
        told["rounds"] += 1


# ---- replication ---------------------------------------------------------------------------------------------


@attack
def mutated_frames_before_hello(place: Place, rng: Random, told: Told) -> None:
    """By a certificate of another source, without a name, and none."""
    who = rng.choice((rng.choice(WEBS), NAMELESS, GREEDY, ""))
    frames = [mutated(rng, data) for data in (_framed(_hello(rng, who or SOURCE)), *rng.sample(SAID, 4))]
    with _secured(place, rng, place.ports.target, who) as talk:
        _say(talk, numbered(frames), told)


@attack
def mutated_frames_after_hello(place: Place, rng: Random, told: Told) -> None:
    """By another source in its own name, at the place in its stream where it is."""
    with _session(place, rng, told) as (talk, durable):
        frames = []
        for sequence in range(durable + 1, durable + BURST):
            event = rng.choice(SHIPPED) if sequence > 1 else ev.Geometry(1, EPOCH, VOLUMES)
            data = _framed(replace(event, sequence=sequence))
            frames += [mutated(rng, data) if rng.random() < 0.05 else data]
            if rng.random() < 0.3:
                frames.append(mutated(rng, rng.choice(SAID)) if rng.random() < 0.3 else _framed(ev.Ping(sequence)))
        _say(talk, numbered(frames, 2), told)


@attack
def sessions_in_the_names_of_others(place: Place, rng: Random, told: Told) -> None:
    """All that is not the victim asks for its session, its history, and its place."""
    purpose, at = rng.choice(list(PURPOSES.items()))
    source = SOURCE if rng.random() < 0.7 else f"nobody-{rng.randrange(10_000)}"
    hello = ev.Hello(2, 2, ev.ABILITIES, source, rng.randbytes(16), 1, purpose, *at)
    with _secured(place, rng, place.ports.target, rng.choice((*WEBS[:2], NAMELESS, GREEDY, ""))) as talk:
        _say(talk, numbered([_framed(hello)]), told)


@attack
def huge_declarations_and_floods_of_cuts(place: Place, rng: Random, told: Told) -> None:
    """As many volumes with names as long as they may be, again and again, and a point after each."""
    volumes = tuple(
        VolumeGeometry(number, f"{number:063d}", f"{number:0255d}", 1 << rng.randrange(20, 50))
        for number in range(1, rng.choice((1025, 257)))
    )
    with _session(place, rng, told) as (talk, durable):
        frames: list[ev.Event] = []
        for sequence in range(durable + 1, durable + 2 * BURST, 2):
            frames.append(ev.Geometry(sequence, EPOCH, volumes))
            frames.append(ev.CutEvent(sequence + 1, EPOCH, Cut(1 << 60, PointKind.QUIET, "x" * 200)))
        _say(talk, numbered([_framed(each) for each in frames], 2), told)


@attack
def floods_of_questions_for_hashes(place: Place, rng: Random, told: Told) -> None:
    """As many as may be open, of as much as may be asked, whose answers nobody reads."""
    with _session(place, rng, told) as (talk, durable):
        frames: list[ev.Event] = [ev.Geometry(durable + 1, EPOCH, VOLUMES)]
        frames += [ev.HashQuery(query, 1, 0, 1 << 16, 1 << 10) for query in range(1, 10 * BURST)]
        talk.sendall(numbered([_framed(each) for each in frames], 2))
        time.sleep(HELD_SECONDS)
        _note_refusal(_heard(talk), told)


# ---- connections that say little -----------------------------------------------------------------------------


@attack
def silent_connections(place: Place, rng: Random, told: Told) -> None:
    """A hundred at one server at a time."""
    _hold(rng, rng.choice(list(place.servers().values())), b"", told)


@attack
def half_open_handshakes(place: Place, rng: Random, told: Told) -> None:
    """Half of a ClientHello, or of NBD's greeting."""
    port = rng.choice(list(place.servers().values()))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    hello = outgoing.read()
    if port == place.nbd:
        hello = nbd.client_flags() + nbd.option(nbd.STARTTLS) + hello
    _hold(rng, port, hello[: rng.randrange(1, len(hello))], told)


@attack
def noise(place: Place, rng: Random, told: Told) -> None:
    """Bytes that are nothing, and protocols at the wrong door."""
    port = rng.choice(list(place.servers().values()))
    with _dial(rng, port) as talk:
        talk.sendall(
            rng.choice(
                (rng.randbytes(rng.randrange(1, 100_000)), b"GET / HTTP/1.1\r\n\r\n", bytes(9000), b"\xff" * 9000)
            )
        )
        told["noise"] += 1
        _heard(talk)


# ---- exports -------------------------------------------------------------------------------------------------


@attack
def floods_of_nbd_options(place: Place, rng: Random, told: Told) -> None:
    """Before TLS and after it, by certificates that were granted something, nothing, and none."""
    who = rng.choice((GREEDY, WEBS[0], NAMELESS, ""))
    with _export(place, rng, who) if who else _dial(rng, place.nbd) as talk:
        if not who:
            talk.sendall(nbd.client_flags())
        for _ in range(20):
            names = (place.export, f"{SOURCE}/data", f"{SOURCE}/data#1", f"{WEBS[0]}/data", rng.randbytes(20).hex())
            said = [
                nbd.option(rng.choice((nbd.LIST, nbd.INFO, nbd.STRUCTURED, 4, 77)), nbd.named(rng.choice(names)))
                if rng.random() < 0.8
                else nbd.option(rng.randrange(20), rng.randbytes(rng.choice((0, 1, 40, 5000))))
                for _ in range(BURST)
            ]
            talk.sendall(b"".join(said))
        told.update(re.findall(r"\[([a-z-]+)\]", _heard(talk, 1 << 20).decode("latin1")))


@attack
def reads_of_64_mib_that_nobody_takes(place: Place, rng: Random, told: Told) -> None:
    """Many connections of somebody who may read, each with many requests, none of whose answers are read."""
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            talk = stack.enter_context(_export(place, rng, GREEDY))
            talk.sendall(nbd.option(nbd.GO, nbd.named(place.export)))
            talk.recv(4096)
            length = rng.choice((READ_BYTES_MAX, 64 << 20))
            talk.sendall(b"".join(nbd.request(nbd.READ, number, 0, length) for number in range(BURST)))
            told["requests"] += BURST
        time.sleep(HELD_SECONDS)


# ---- REST ----------------------------------------------------------------------------------------------------


@attack
def rest_connections_that_are_idle(place: Place, rng: Random, told: Told) -> None:
    """A hundred, each with TLS done and one answer taken."""
    context = _anybody(place)
    with contextlib.ExitStack() as stack:
        for _ in range(MANY):
            talk = stack.enter_context(contextlib.closing(_rest(place, rng, context)))
            told[_asked(talk, "GET", "/api/v1/health")] += 1
        time.sleep(HELD_SECONDS)


@attack
def rest_bodies_that_come_slowly(place: Place, rng: Random, told: Told) -> None:
    """Requests that say that much will come, of which little comes, by nobody and by a viewer."""
    context = _anybody(place)
    with contextlib.ExitStack() as stack:
        talks = []
        for _ in range(MANY):
            talk = stack.enter_context(_wrapped(_dial(rng, place.ports.rest), context))
            known = f"Authorization: Bearer {place.token}\r\n" if rng.random() < 0.3 else ""
            path = rng.choice(("login", "runs", "runbooks/validate"))
            head = f"POST /api/v1/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{known}Content-Type: application/json\r\n"
            talk.sendall(f"{head}Content-Length: {rng.choice((100, 8 << 20, 1 << 40))}\r\n\r\n".encode())
            talks.append(talk)
        for _ in range(int(HELD_SECONDS)):
            for talk in talks:
                with contextlib.suppress(OSError):
                    talk.sendall(b"[")
            time.sleep(1)
        for talk in talks:
            talk.settimeout(0.01)
            with contextlib.suppress(OSError):
                told[f"rest {talk.recv(12)[9:].decode('latin1')}"] += 1


@attack
def passwords_are_guessed(place: Place, rng: Random, told: Told) -> None:
    """Of the account that there is, of others, and tokens as well."""
    with contextlib.closing(_rest(place, rng, _anybody(place))) as talk:
        for _ in range(BURST):
            asked = {
                "name": rng.choice(("vic", "admin", "root", rng.randbytes(4).hex())),
                "password": rng.choice(PASSWORDS),
            }
            if rng.random() < 0.3:
                bearer = {"Authorization": f"Bearer {rng.randbytes(20).hex()}"}
                told[_asked(talk, "GET", "/api/v1/runs", None, bearer)] += 1
            else:
                body = json.dumps(asked).encode()
                told[_asked(talk, "POST", "/api/v1/login", body, {"Content-Type": "application/json"})] += 1


# ---- control and enrolment -----------------------------------------------------------------------------------


@attack
def floods_over_mqtt(place: Place, rng: Random, told: Told) -> None:
    """By an agent: its own topics, others' topics, large and retained, all subscribed to and nothing read."""
    own = rng.choice(WEBS[:2])
    with _secured(place, rng, place.ports.broker, own) as talk:
        talk.sendall(_packet(0x10, _text("MQTT") + b"\x05\x02\0\0\0" + _text(f"agent-{own}-{rng.randrange(9)}")))
        talk.sendall(_packet(0x82, b"\0\x01\0" + _text(f"drengine/{SITE}/agent/{own}/#") + b"\0"))
        for _ in range(20 * BURST):
            whose = rng.choice((own, own, own, SOURCE))
            topic = f"drengine/{SITE}/agent/{whose}/{rng.choice(('report', 'presence', 'answer', 'command'))}"
            payload = rng.randbytes(rng.choice((10, 1000, PACKET_BYTES_MAX - 200)))
            packet = _packet(rng.choice((0x30, 0x31)), _text(topic) + b"\0" + payload)
            talk.sendall(packet if rng.random() < 0.99 else rng.randbytes(len(packet)))
            told["messages"] += 1


@attack
def enrolment_with_wrong_tokens(place: Place, rng: Random, told: Told) -> None:
    """Ids that exist with other secrets, ids that don't, and requests that are none."""
    known = Invitation.parse(place.invitation)
    context = _anybody(place)
    for _ in range(4):
        talk = http.client.HTTPSConnection(
            "127.0.0.1", place.ports.authority, context=context, source_address=(rng.choice(ADDRESSES), 0)
        )
        with contextlib.closing(talk):
            id = known.id if rng.random() < 0.5 else rng.randbytes(6).hex()
            asked = {
                "id": id,
                "secret": rng.randbytes(20).hex(),
                "name": "late",
                "csr": rng.choice((CSR, CSR, "", "x" * 10_000)),
            }
            body = json.dumps(asked).encode() if rng.random() < 0.8 else rng.randbytes(rng.randrange(70_000))
            path = rng.choice(("/v1/enrol", "/v1/enrol", "/v1/renew", "/v1/identities", "/v1/updates?have=x"))
            proof = {
                "x-drengine-certificate": base64.b64encode(rng.randbytes(400)).decode(),
                "x-drengine-proof": "eHg=",
            }
            told[
                _asked(
                    talk,
                    "POST" if path < "/v1/i" or "renew" in path else "GET",
                    path,
                    body,
                    proof if rng.random() < 0.5 else {},
                )
            ] += 1


# ---- how they speak ------------------------------------------------------------------------------------------


def _hello(rng: Random, source: str) -> ev.Hello:
    return ev.Hello(2, 2, ev.ABILITIES, source, rng.randbytes(16), 1)


def _dial(rng: Random, port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS, (rng.choice(ADDRESSES), 0))


def _anybody(place: Place) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(place.ca))


def _context(place: Place, who: str) -> ssl.SSLContext:
    context = _anybody(place)
    if who:
        files: TlsFiles = place.files[who]
        context.load_cert_chain(files.certificate, files.key)
    return context


def _wrapped(plain: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    try:
        return context.wrap_socket(plain, server_hostname="127.0.0.1")
    except BaseException:
        plain.close()
        raise


def _secured(place: Place, rng: Random, port: int, who: str) -> ssl.SSLSocket:
    context = _context(place, who)
    return _wrapped(_dial(rng, port), context)


def _export(place: Place, rng: Random, who: str) -> ssl.SSLSocket:
    """A connection to the exports, as far as TLS."""
    context = _context(place, who)
    plain = _dial(rng, place.nbd)
    with contextlib.ExitStack() as stack:
        stack.callback(plain.close)
        plain.recv(nbd.GREETING_BYTES, socket.MSG_WAITALL)
        plain.sendall(nbd.client_flags() + nbd.option(nbd.STARTTLS))
        plain.recv(20, socket.MSG_WAITALL)
        stack.pop_all()
    return _wrapped(plain, context)


def _framed(event: ev.Event) -> bytes:
    return joined(encode_frame(event, 1))


@contextlib.contextmanager
def _session(place: Place, rng: Random, told: Told) -> Iterator[tuple[ssl.SSLSocket, int]]:
    """A session that was welcomed, of a source that misbehaves, and what of it is durable."""
    source = rng.choice(WEBS)
    side = Connection(Role.AGENT)
    with _secured(place, rng, place.ports.target, source) as talk:
        talk.sendall(joined(side.send(_hello(rng, source))))
        answers: list[ev.Event] = []
        while not answers and (part := talk.recv(1 << 16)):
            answers = list(side.receive(part))
        if answers and isinstance(answers[0], ev.Welcome):
            told["welcome"] += 1
            yield talk, answers[0].durable_sequence
            return
        told[answers[0].code if answers and isinstance(answers[0], ev.Refuse) else "closed"] += 1
    raise ConnectionRefusedError


def _say(talk: ssl.SSLSocket, said: bytes, told: Told) -> None:
    """Say it all, and hear what comes until the end or for a moment."""
    with contextlib.suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
        talk.sendall(said)
    talk.settimeout(ANSWER_SECONDS / 4)
    _note_refusal(_heard(talk), told)


def _heard(talk: socket.socket, most: int = ANSWER_BYTES_MAX) -> bytes:
    heard = bytearray()
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        while len(heard) < most and (part := talk.recv(1 << 16)):
            heard += part
    return bytes(heard)


def _note_refusal(heard: bytes, told: Told) -> None:
    """Count the ids in what REFUSE frames say; who answers nonsense is not obliged to answer in order."""
    at = 0
    while at + HEADER.size <= len(heard):
        _, _, kind, _, body_bytes, *_ = HEADER.unpack_from(heard, at)
        body = heard[at + HEADER.size : at + HEADER.size + body_bytes]
        if kind == FrameType.REFUSE:
            told[body[2 : 2 + int.from_bytes(body[:2], "little")].decode()] += 1
        at += HEADER.size + body_bytes


def _hold(rng: Random, port: int, said: bytes, told: Told) -> None:
    """A hundred more, and none of those before is let go until there are many more."""
    group = contextlib.ExitStack()
    if len(HELD) == HELD.maxlen:
        HELD[0].close()
    HELD.append(group)
    for _ in range(MANY):
        talk = group.enter_context(_dial(rng, port))
        if said:
            talk.sendall(said)
        told["connections"] += 1
    time.sleep(PAUSE_SECONDS)


def _rest(place: Place, rng: Random, context: ssl.SSLContext) -> http.client.HTTPSConnection:
    return http.client.HTTPSConnection(
        "127.0.0.1", place.ports.rest, context=context, timeout=10, source_address=(rng.choice(ADDRESSES), 0)
    )


def _asked(
    talk: http.client.HTTPSConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    said: dict[str, str] | None = None,
) -> str:
    """The id of the refusal, or the status."""
    talk.request(method, path, body, said or {})
    answer = talk.getresponse()
    content = answer.read()
    with contextlib.suppress(ValueError, AttributeError):
        found = json.loads(content)
        return str(found.get("id") or found.get("reason") or answer.status)
    return str(answer.status)


def _alert(error: ssl.SSLError) -> str:
    return str(error.reason or "ended").lower().replace("_", " ")


def _text(value: str) -> bytes:
    return struct.pack(">H", len(value)) + value.encode()


def _packet(first: int, body: bytes) -> bytes:
    """An MQTT packet."""
    return bytes([first, *_length(len(body))]) + body


def _length(value: int) -> Iterator[int]:
    while value > 0x7F:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value
