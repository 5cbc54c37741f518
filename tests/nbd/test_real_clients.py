"""Real NBD clients judge the server: libnbd's tools, QEMU's, fio, and a file system mounted through nbdfuse."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import os
import random
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from drengine.nbd.export import Peer
from drengine.nbd.file_export import FileExport, FileProvider
from drengine.nbd.limits import NbdLimits
from drengine.nbd.server import NbdServer
from tests.nbd import wire as nbd
from tests.nbd.conftest import Client, until
from tests.nbd.test_server import HeldExport

IMAGE_BYTES = 24 << 20


def need(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")


async def run(*argv: str | Path, ok: bool = True, env: dict[str, str] | None = None) -> str:
    """A client's standard output; the server runs on this loop meanwhile."""
    process = await asyncio.create_subprocess_exec(
        *map(str, argv),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode == 0) == ok, f"{argv[0]}: {process.returncode}\n{out.decode()}\n{err.decode()}"
    return out.decode() + ("" if ok else err.decode())


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Data, zeros and holes in runs of different lengths."""
    path = tmp_path / "image.raw"
    rng = random.Random(1)
    with path.open("wb") as file:
        file.truncate(IMAGE_BYTES)
        while file.tell() < IMAGE_BYTES - (2 << 20):
            file.seek(rng.randrange(1, 2 << 20) & ~511, os.SEEK_CUR)
            file.write(rng.randbytes(rng.randrange(512, 300_000)))
            file.write(bytes(rng.randrange(1, 50_000)))
    os.truncate(path, IMAGE_BYTES)
    return path


class Served:
    """Files served on a unix socket and on TCP."""

    def __init__(self, server: NbdServer, socket_path: Path, port: int) -> None:
        self.server, self.path, self.port = server, socket_path, port

    def uri(self, name: str, tcp: bool = False) -> str:
        return f"nbd://127.0.0.1:{self.port}/{name}" if tcp else f"nbd+unix:///{name}?socket={self.path}"


@pytest.fixture
async def served(image: Path, tmp_path: Path) -> AsyncIterator[Served]:
    empty = tmp_path / "empty.raw"
    with empty.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    server = NbdServer(FileProvider({"image": image, "empty": empty, "src/vol@1-5": image}))
    path = await server.start_unix(tmp_path / "nbd.sock")
    _, port = await server.start_tcp("127.0.0.1")
    yield Served(server, path, port)
    await server.close(1)


async def test_nbdinfo_lists_describes_and_maps(served: Served) -> None:
    need("nbdinfo")
    listed = json.loads(await run("nbdinfo", "--list", "--json", served.uri("")))
    assert [e["export-name"] for e in listed["exports"]] == ["image", "empty", "src/vol@1-5"]
    (export,) = json.loads(await run("nbdinfo", "--json", served.uri("src/vol@1-5")))["exports"]
    assert export["export-size"] == IMAGE_BYTES
    assert export["contexts"] == ["base:allocation"]
    assert export["can_multi_conn"]
    extents = json.loads(await run("nbdinfo", "--map", "--json", served.uri("image")))
    assert sum(extent["length"] for extent in extents) == IMAGE_BYTES
    assert {extent["type"] for extent in extents} == {0, 3}


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("connections", [1, 4])
async def test_nbdcopy_out_and_in_is_byte_exact(
    served: Served, image: Path, tmp_path: Path, tcp: bool, connections: int
) -> None:
    need("nbdcopy")
    copy = tmp_path / "copy.raw"
    await run("nbdcopy", f"--connections={connections}", served.uri("image", tcp), copy)
    assert copy.read_bytes() == image.read_bytes()  # noqa: ASYNC240
    await run("nbdcopy", "--flush", f"--connections={connections}", copy, served.uri("empty", tcp))
    assert (tmp_path / "empty.raw").read_bytes() == image.read_bytes()  # noqa: ASYNC240


async def test_qemu_img_reads_compares_and_converts(served: Served, image: Path, tmp_path: Path) -> None:
    need("qemu-img")
    info = json.loads(await run("qemu-img", "info", "-f", "raw", "--output=json", served.uri("image")))
    assert info["virtual-size"] == IMAGE_BYTES
    await run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, served.uri("image"))
    await run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, served.uri("empty"), ok=False)
    await run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", served.uri("image"), served.uri("empty"))
    await run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, tmp_path / "empty.raw")


async def test_qemu_io_writes_zeroes_and_discards_what_it_then_reads(served: Served) -> None:
    need("qemu-io")
    script = (
        "write -P 0x11 0 3M",
        "write -z 1M 64k",
        "write -z -u 1200k 4k",
        "discard 2M 512k",
        "write -f -P 0x22 512 1024",
        "flush",
        "read -P 0x11 0 512",
        "read -P 0x22 512 1024",
        "read -P 0 1M 64k",
        "read -P 0 1200k 4k",
        "read -P 0 2M 512k",
        "read -P 0x11 2560k 512k",
        "aio_write -P 0x33 4M 8M",
        "aio_write -P 0x44 12M 64k",
        "aio_flush",
        "read -P 0x33 4M 8M",
        "read -P 0x44 12M 64k",
    )
    commands = [argument for command in script for argument in ("-c", command)]
    output = await run("qemu-io", "-f", "raw", *commands, served.uri("empty"))
    assert "failed" not in output
    assert "error" not in output.lower()


async def test_fio_verifies_random_writes(served: Served, tmp_path: Path) -> None:
    need("fio")
    if "nbd" not in await run("fio", "--enghelp"):
        pytest.skip("fio is built without its nbd engine")
    await run(
        "fio",
        "--name=verify",
        "--ioengine=nbd",
        f"--uri={served.uri('empty')}",
        "--rw=randwrite",
        "--bsrange=512-64k",
        "--iodepth=16",
        f"--size={IMAGE_BYTES // 2}",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--randseed=7",
        f"--aux-path={tmp_path}",
    )
    assert served.server.stats.requests > 500


async def test_a_file_system_through_nbdfuse_is_clean_afterwards(served: Served, tmp_path: Path) -> None:
    need("nbdfuse", "mkfs.ext4", "e2fsck", "debugfs", "fusermount3")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse cannot be used here")
    place = tmp_path / "mounted"
    place.touch()
    process = await asyncio.create_subprocess_exec("nbdfuse", place, served.uri("empty"), stderr=subprocess.PIPE)
    try:
        await until(lambda: place.stat().st_size or process.returncode is not None)
        assert process.returncode is None
        await run("mkfs.ext4", "-q", "-F", place)
        await run("debugfs", "-w", "-R", f"write {tmp_path / 'image.raw'} file", place)
    finally:
        if process.returncode is None:
            await run("fusermount3", "-u", place)
            await process.wait()
    await run("e2fsck", "-fn", tmp_path / "empty.raw")


async def test_read_only_exports_refuse_real_writers(image: Path, tmp_path: Path) -> None:
    need("qemu-io")
    server = NbdServer(FileProvider({"image": image}, read_only=True))
    path = await server.start_unix(tmp_path / "ro.sock")
    before = image.read_bytes()  # noqa: ASYNC240
    await run("qemu-io", "-f", "raw", "-c", "write 0 4k", f"nbd+unix:///image?socket={path}", ok=False)
    await run("qemu-io", "-r", "-f", "raw", "-c", "read 0 4k", f"nbd+unix:///image?socket={path}")
    assert image.read_bytes() == before  # noqa: ASYNC240
    await server.close(1)


async def test_shutdown_under_load_answers_what_it_took(image: Path, tmp_path: Path) -> None:
    """Every write answered before the end is in the file; the server is gone well inside its grace."""
    server = NbdServer(FileProvider({"image": image}))
    path = await server.start_unix(tmp_path / "load.sock")
    acknowledged: dict[int, int] = {}

    async def write_until_cut(slot: int) -> None:
        client = await Client.connect(str(path))
        await client.go("image")
        try:
            for stamp in range(1, 1 << 30):
                data = stamp.to_bytes(8, "big") * 512
                if (await client.call(nbd.WRITE, slot * 4096, 0, data=data)).error:
                    break
                acknowledged[slot] = stamp
        except ConnectionError:
            pass
        client.close()

    writers = [asyncio.create_task(write_until_cut(slot)) for slot in range(8)]
    await until(lambda: len(acknowledged) == 8 and min(acknowledged.values()) > 20)
    await server.close(30)
    await asyncio.gather(*writers)
    content = image.read_bytes()  # noqa: ASYNC240
    for slot, stamp in acknowledged.items():
        block = content[slot * 4096 : slot * 4096 + 4096]
        assert block == block[:8] * 512, "a write is torn"
        assert int.from_bytes(block[:8], "big") in (stamp, stamp + 1)
    assert server.stats.ended["shutdown"] == 8


# TLS


def make_certificates(folder: Path) -> None:
    """A CA, a server and a client, under the names that libnbd and QEMU look for."""
    now = datetime.datetime.now(datetime.UTC)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "server", "client")}
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
    for name, key in keys.items():
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
                ),
                critical=False,
            )
        )
        certificate = builder.sign(keys["ca"], hashes.SHA256())
        (folder / f"{name}-cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / f"{name}-key.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )


def server_context(folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / "server-cert.pem", folder / "server-key.pem")
    context.load_verify_locations(folder / "ca-cert.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    folder = tmp_path / "pki"
    folder.mkdir()
    make_certificates(folder)
    return folder


@pytest.mark.fault(39)
async def test_real_clients_work_over_tls_and_not_without_it(image: Path, tmp_path: Path, certificates: Path) -> None:
    need("nbdinfo", "nbdcopy", "qemu-img")
    server = NbdServer(FileProvider({"image": image}), tls=partial(server_context, certificates), tls_required=True)
    _, port = await server.start_tcp("127.0.0.1")
    secure = f"nbds://127.0.0.1:{port}/image?tls-certificates={certificates}"
    (export,) = json.loads(await run("nbdinfo", "--json", secure))["exports"]
    assert export["export-size"] == IMAGE_BYTES
    copy = tmp_path / "copy.raw"
    await run("nbdcopy", secure, copy)
    assert copy.read_bytes() == image.read_bytes()  # noqa: ASYNC240
    await run(
        "qemu-img",
        "compare",
        "--object",
        f"tls-creds-x509,id=tls0,endpoint=client,dir={qemu_folder(certificates)}",
        "--image-opts",
        f"driver=raw,file.filename={image}",
        f"driver=nbd,host=127.0.0.1,port={port},export=image,tls-creds=tls0",
    )
    await run("nbdinfo", f"nbd://127.0.0.1:{port}/image", ok=False)
    beside = await server.start_unix(tmp_path / "beside.sock")
    assert beside.stat().st_mode & 0o777 == 0o600
    await run("nbdinfo", f"nbd+unix:///image?socket={beside}")  # plain: the kernel says who it is
    await server.close(1)
    assert server.stats.ended["goodbye"] >= 3


def qemu_folder(certificates: Path) -> Path:
    folder = certificates / "qemu"
    folder.mkdir()
    for name in ("ca-cert.pem", "client-cert.pem", "client-key.pem"):
        shutil.copy(certificates / name, folder / name)
    return folder


@pytest.mark.fault(39, 40)
async def test_tls_takes_a_certificate_of_our_ca_only_and_names_the_peer(
    image: Path, tmp_path: Path, certificates: Path
) -> None:
    other = tmp_path / "other-pki"
    other.mkdir()
    make_certificates(other)
    export = HeldExport()
    server = NbdServer(export, tls=partial(server_context, certificates))
    path = str(await server.start_unix(tmp_path / "tls.sock"))

    async def handshake(folder: Path) -> Client:
        context = ssl.create_default_context(cafile=str(certificates / "ca-cert.pem"))
        context.load_cert_chain(folder / "client-cert.pem", folder / "client-key.pem")
        client = await Client.connect(path)
        client.writer.write(nbd.client_flags() + nbd.option(nbd.STARTTLS))
        assert (await client.option()).kind == nbd.ACK
        await client.writer.start_tls(context, server_hostname="localhost")
        client.writer.write(nbd.option(nbd.LIST))
        assert (await client.option()).data == b"\0\0\0\4held"
        return client

    good = await handshake(certificates)
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        await handshake(other)
    await until(lambda: server.stats.ended)
    assert server.stats.ended == {"tls-failed": 1}
    assert (await good.option()).kind == nbd.ACK
    good.writer.write(nbd.option(nbd.INFO, nbd.named("held")))
    assert (await good.option()).kind == nbd.REP_INFO
    assert export.peers == [Peer("unix", 0, "client", uid=os.geteuid())]
    good.close()
    await server.close(1)


@pytest.mark.fault(39)
async def test_options_injected_behind_starttls_are_refused_on_the_socket(
    image: Path, tmp_path: Path, certificates: Path
) -> None:
    server = NbdServer(FileProvider({"image": image}), tls=partial(server_context, certificates), tls_required=True)
    path = str(await server.start_unix(tmp_path / "tls.sock"))
    client = await Client.connect(path)
    client.writer.write(nbd.client_flags() + nbd.option(nbd.STARTTLS) + nbd.option(nbd.LIST))
    said = await client.ended()
    assert b"image" not in said
    await until(lambda: server.stats.ended)
    assert server.stats.ended == {"nbd-protocol": 1}
    await server.close(1)


async def test_whoever_makes_way_in_the_middle_of_tls_ends_without_a_word_about_us(
    image: Path, tmp_path: Path, certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio's start_tls returns None then, where it might have raised."""
    limits = NbdLimits(handshakes_max=1)
    server = NbdServer(FileProvider({"image": image}), tls=partial(server_context, certificates), limits=limits)
    path = str(await server.start_unix(tmp_path / "tls.sock"))
    first = await Client.connect(path)
    first.writer.write(nbd.client_flags() + nbd.option(nbd.STARTTLS))
    assert (await first.option()).kind == nbd.ACK
    second = await Client.connect(path)
    await first.ended()
    await until(lambda: server.stats.ended)
    assert server.stats.ended == {"crowded": 1}
    assert [each.message for each in caplog.records if each.levelname == "ERROR"] == []
    second.close()
    await server.close(1)


def test_a_server_killed_leaves_a_socket_that_the_next_one_replaces(tmp_path: Path, image: Path) -> None:
    script = (
        "import asyncio,sys\n"
        "from pathlib import Path\n"
        "from drengine.nbd.server import NbdServer\n"
        "from drengine.nbd.file_export import FileProvider\n"
        "async def main():\n"
        "    server = NbdServer(FileProvider({'image': Path(sys.argv[1])}))\n"
        "    await server.start_unix(sys.argv[2])\n"
        "    print('ready', flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    path = tmp_path / "killed.sock"
    for _ in range(2):
        argv = (sys.executable, "-c", script, str(image), str(path))
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGKILL)
        assert path.exists()
    assert FileExport(image).info.size_bytes == IMAGE_BYTES
