"""Peers that say anything: frames, NBD requests and questions on the way home, mutated but with checks that fit."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from drengine.wire import events as ev
from drengine.wire.connection import Connection, Role
from drengine.wire.frames import encode_frame
from tests.field.ground import Ground, Pair
from tests.field.load import scatter
from tests.field.trial import trial
from tests.nbd import wire as nbd
from tests.wire.mutation import mutated, numbered
from tests.wire.samples import CONVERSATION, REVERSAL, joined, record

MIB = 1 << 20
FRAMES, REQUESTS, QUESTIONS = 26_000, 32_000, 24_000
BURST = 40
ANSWER_SECONDS = 2.0
ANSWER_BYTES_MAX = 64 * MIB
RESIDENT_BYTES_MAX = 400 * MIB


@trial(seconds_max=240)
def mutated_frames_crash_nobody(ground: Ground) -> None:
    """Tens of thousands of mutated frames at a target that works for somebody else: all goes on."""
    pair = Pair(ground, {"data": ground.image("data", 4 * MIB)}).start()
    said = [data for who, _, data in record(CONVERSATION) if who is Role.AGENT]
    sent = 0
    while sent < ground.times(FRAMES):
        frames = [mutated(ground.rng, data) if ground.rng.random() < 0.4 else data for data in said]
        ground.rng.random() < 0.3 and ground.rng.shuffle(frames)
        frames = frames[:1] + frames[1:] * (BURST // len(frames))
        _speak(pair.port, numbered(frames))
        sent += len(frames)
        if sent % 2000 < BURST:
            scatter(ground, pair, "data", 2)
    _lives(ground, pair)
    ground.measured["frames"] = sent


@trial(seconds_max=240)
def mutated_questions_on_the_way_home_crash_nobody(ground: Ground) -> None:
    """Tens of thousands of mutated REVERSE frames behind a greeting that fits: the target answers or refuses."""
    pair = Pair(ground, {"data": ground.image("data", 4 * MIB)}).start()
    pair.until_equal()
    point = pair.newest()
    assert point
    to = f"agent/{pair.source}"
    ground.drengine("grant", "give", "--store", pair.store, "--access", "reverse", "--to", to, "--json")
    sent = 0
    said = [event for who, event in REVERSAL if who is Role.AGENT and not isinstance(event, ev.Hello)]
    while sent < ground.times(QUESTIONS):
        agent = Connection(Role.AGENT)
        hello = ev.Hello(
            1, 1, ev.ABILITIES, pair.source, ground.rng.randbytes(16), 1, ev.Purpose.REVERSE, 1, point.sequence
        )
        frames = [joined(agent.send(hello))]
        for _ in range(BURST):
            data = _framed(ground.rng.choice(said))
            frames.append(mutated(ground.rng, data) if ground.rng.random() < 0.5 else data)
        _speak(pair.port, numbered(frames))
        sent += len(frames)
    _lives(ground, pair)
    ground.measured["frames"] = sent


@trial(seconds_max=240)
def odd_nbd_requests_crash_nobody(ground: Ground) -> None:
    """Tens of thousands of odd NBD options and requests at the tap and the recovery socket: both serve on."""
    pair = Pair(ground, {"data": ground.image("data", 4 * MIB), "odd": ground.image("odd", 4 * MIB)}).start()
    point = pair.newest()
    assert point
    places = ((pair.tap, "odd"), (pair.recovery, f"{pair.source}/odd@{point.id}"))
    sent = 0
    while sent < ground.times(REQUESTS):
        place, name = places[ground.rng.randrange(2)]
        burst = list(_requests(ground.rng, name))
        _converse(place, burst)
        sent += len(burst)
    _lives(ground, pair)
    ground.measured["requests"] = sent


def _lives(ground: Ground, pair: Pair) -> None:
    """Both daemons go on, in bounded memory, without a traceback in their logs."""
    scatter(ground, pair, "data", 20)
    pair.until_continuous()
    pair.until_equal()
    for name, process in (("target", pair.target), ("agent", pair.process)):
        assert process.poll() is None, name
        log = (ground.folder / f"{name}.log").read_text()
        assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:2000]
        resident = _resident_bytes(process.pid)
        ground.measured[f"{name} MiB resident"] = resident >> 20
        assert resident < RESIDENT_BYTES_MAX, f"{name}: {resident} bytes resident"


def _resident_bytes(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


def _framed(event: ev.Event) -> bytes:
    """An event's frame, whatever may be said at this moment."""
    return joined(encode_frame(event, 1))


def _speak(port: int, data: bytes) -> None:
    """Say it all, and hear what comes until the end or for a moment."""
    with socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS) as talk, contextlib.suppress(OSError):
        talk.sendall(data)
        talk.shutdown(socket.SHUT_WR)
        _hear(talk)


def _hear(talk: socket.socket) -> None:
    heard = 0
    while (part := talk.recv(1 << 20)) and heard < ANSWER_BYTES_MAX:
        heard += len(part)


def _requests(rng: random.Random, name: str) -> Iterator[bytes]:
    """A handshake that is mostly right, then requests that are mostly not."""
    yield nbd.client_flags(rng.choice((3, 3, 3, 0, 1, 0xFFFFFFFF)))
    while rng.random() < 0.3:
        yield nbd.option(rng.randrange(20), rng.randbytes(rng.choice((0, 1, 4, 40, 5000))))
    yield nbd.option(nbd.GO, nbd.named(name if rng.random() < 0.9 else rng.randbytes(20).hex()))
    for number in range(BURST):
        command = rng.choice((*range(8), nbd.READ, nbd.WRITE, rng.randrange(65536)))
        length = rng.choice((0, 1, 511, 512, 4096, 65536, MIB, 1 << 25, (1 << 32) - 1))
        offset = rng.choice((0, 512, 4 * MIB - 512, 4 * MIB, (1 << 63) - 1, (1 << 64) - 512, rng.randrange(4 * MIB)))
        data = b""
        if command == nbd.WRITE:
            length = min(length, 65536)
            data = rng.randbytes(length if rng.random() < 0.95 else length // 2)
        magic = 0x25609513 if rng.random() < 0.98 else rng.randrange(1 << 32)
        flags = rng.choice((0, 0, 0, nbd.FUA, nbd.DF, nbd.REQ_ONE, rng.randrange(65536)))
        yield struct.pack(">IHHQQI", magic, flags, command, number, offset, length) + data


def _converse(place: Path, burst: list[bytes]) -> None:
    with socket.socket(socket.AF_UNIX) as talk, contextlib.suppress(OSError):
        talk.settimeout(ANSWER_SECONDS)
        talk.connect(str(place))
        talk.sendall(b"".join(burst))
        talk.shutdown(socket.SHUT_WR)
        _hear(talk)
