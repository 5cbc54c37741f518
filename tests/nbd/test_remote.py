"""What was flushed through a disk whose server dies and comes back is there, and reads never go back in time."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drengine.model.errors import DrengineError
from drengine.nbd import remote
from drengine.nbd.client import NBD_CLIENT, NbdClient
from drengine.nbd.remote import RemoteDisk

SIZE_BYTES = 1 << 16


class Server:
    """A disk whose unflushed writes die with it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.durable = bytearray(SIZE_BYTES)
        self.seen = bytearray(SIZE_BYTES)
        self.clients: list[Client] = []
        self.refusing = False

    def connect(self) -> NbdClient:
        with self.lock:
            if self.refusing:
                raise ConnectionRefusedError("nobody listens")
            self.clients.append(Client(self))
            return self.clients[-1]  # type: ignore[return-value]

    def restart(self) -> None:
        with self.lock:
            for client in self.clients:
                client.dead = True
            self.clients.clear()
            self.seen[:] = self.durable


class Client:
    """A connection; as NbdClient."""

    size_bytes = SIZE_BYTES
    block_bytes_min = 1

    def __init__(self, server: Server) -> None:
        self.server = server
        self.dead = False

    def _alive(self) -> None:
        if self.dead:
            raise ConnectionResetError("the server is gone")

    def read(self, offset: int, length: int) -> bytes:
        with self.server.lock:
            self._alive()
            return bytes(self.server.seen[offset : offset + length])

    def write(self, offset: int, data: bytes | memoryview) -> None:
        with self.server.lock:
            self._alive()
            self.server.seen[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int) -> None:
        self.write(offset, bytes(length))

    trim = zero

    def flush(self) -> None:
        with self.server.lock:
            self._alive()
            self.server.durable[:] = self.server.seen

    def close(self) -> None:
        self.dead = True


ranges = st.tuples(st.integers(0, SIZE_BYTES - 1), st.integers(1, 3000)).map(
    lambda pair: (pair[0], min(pair[1], SIZE_BYTES - pair[0]))
)
steps = st.lists(st.tuples(st.sampled_from(["read", "write", "zero", "discard", "flush", "restart"]), ranges))


@settings(deadline=None)
@given(steps=steps, seed=st.integers(0, 2**32), bound=st.sampled_from([0, 5000, 32 << 20]))
def test_a_server_that_restarts_is_not_noticed(steps: list[tuple[str, tuple[int, int]]], seed: int, bound: int) -> None:
    rng, server, model = random.Random(seed), Server(), bytearray(SIZE_BYTES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "_RETRY_SECONDS", 0.0)
        patch.setattr(remote, "UNFLUSHED_BYTES_MAX", bound)
        disk = RemoteDisk(server.connect, 3)
        flushed = bytes(model)
        for action, (offset, length) in steps:
            match action:
                case "read":
                    assert disk.read(offset, length) == model[offset : offset + length]
                case "write":
                    model[offset : offset + length] = rng.randbytes(length)
                    disk.write(offset, bytes(model[offset : offset + length]))
                case "zero" | "discard":
                    model[offset : offset + length] = bytes(length)
                    disk.zero(offset, length, discard=action == "discard")
                case "flush":
                    disk.flush()
                    flushed = bytes(model)
                    assert server.durable == flushed
                case "restart":
                    server.restart()
        disk.flush()
        assert server.durable == model
        disk.close()


def test_writers_and_flushers_lose_nothing_while_the_server_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_RETRY_SECONDS", 0.0)
    server = Server()
    disk = RemoteDisk(server.connect, 3)
    lost: list[tuple[int, int]] = []

    def work(worker: int) -> None:
        rng = random.Random(worker)
        for number in range(1, 300):
            stamp = number.to_bytes(4, "big")
            disk.write(worker * 4, stamp)
            if rng.random() < 0.1:
                server.restart()
            if disk.read(worker * 4, 4) != stamp:
                lost.append((worker, number))
            if rng.random() < 0.3:
                disk.flush()
                if server.durable[worker * 4 : worker * 4 + 4] != stamp:
                    lost.append((worker, number))

    workers = [threading.Thread(target=work, args=(worker,)) for worker in range(6)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    assert not lost
    disk.close()


def test_a_server_that_does_not_come_back_is_an_error_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "RECONNECT_SECONDS", 0.0)
    server = Server()
    disk = RemoteDisk(server.connect, 1)
    server.refusing = True
    server.restart()
    with pytest.raises(OSError):
        disk.write(0, b"x")
    server.refusing = False
    disk.write(0, b"y")
    disk.flush()
    assert server.durable[:1] == b"y"
    disk.close()


def test_once_a_server_was_gone_for_long_requests_fail_at_once_until_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(remote, "time", clock := Clock())
    server = Server()
    disk = RemoteDisk(server.connect, 2)
    server.refusing = True
    server.restart()
    with pytest.raises(OSError):
        disk.write(0, b"x")
    waited = clock.now
    assert waited > remote.RECONNECT_SECONDS
    with pytest.raises(OSError):
        disk.flush()
    assert clock.now - waited < 10
    server.refusing = False
    disk.write(0, b"y")
    disk.flush()
    assert server.durable[:1] == b"y"
    disk.close()


class Clock:
    """A second passes each time that somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1
        return self.now


def test_what_the_server_refuses_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    disk = RemoteDisk(server.connect, 1)
    asked = []

    def refuse(client: Client, offset: int, data: bytes) -> None:
        asked.append(offset)
        raise DrengineError(NBD_CLIENT, "no room")

    monkeypatch.setattr(Client, "write", refuse)
    with pytest.raises(DrengineError, match="no room"):
        disk.write(7, b"x")
    assert asked == [7]
    disk.close()


def test_no_request_waits_for_a_server_once_it_is_to_end() -> None:
    server = Server()
    disk = RemoteDisk(server.connect, 2)
    server.refusing = True
    server.restart()
    disk.stop_waiting()
    with pytest.raises(OSError):
        disk.flush()
    disk.close()
