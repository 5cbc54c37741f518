"""Our NBD client over TLS: nothing in the clear, both sides known, refusals with words."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from drengine.model.errors import DrengineError
from drengine.nbd.client import NbdAddress, NbdClient
from drengine.nbd.file_export import FileProvider
from drengine.nbd.server import NbdServer
from drengine.transport.tls import server_context
from tests.transport.certificates import Authority


def folder_of(authority: Authority, folder: Path) -> Path:
    files = authority.issue("client")
    folder.mkdir()
    for source, name in ((files.ca, "ca-cert"), (files.certificate, "client-cert"), (files.key, "client-key")):
        (folder / f"{name}.pem").write_bytes(source.read_bytes())
    return folder


async def test_a_disk_is_read_and_written_over_tls_and_in_no_other_way(tmp_path: Path) -> None:
    ours, theirs = Authority.make(tmp_path / "ours"), Authority.make(tmp_path / "theirs")
    image = tmp_path / "disk"
    image.write_bytes(b"secret" * 1000)
    context = server_context(ours.issue("localhost"))
    server = NbdServer(FileProvider({"disk": image}), tls=lambda: context, tls_required=True)
    try:
        _, port = await server.start_tcp("127.0.0.1")
        at = f"localhost:{port}/disk"
        good, bad = folder_of(ours, tmp_path / "good"), folder_of(theirs, tmp_path / "bad")

        def use() -> None:
            with NbdClient.of(f"nbds://{at}?tls-certificates={good}") as disk:
                disk.write(6, b"SECRET")
                disk.flush()
                assert disk.read(0, 12) == b"secretSECRET"

        await asyncio.to_thread(use)
        for uri in (f"nbd://{at}", f"nbds://{at}?tls-certificates={bad}", f"nbds://{at}?tls-certificates={tmp_path}"):
            with pytest.raises((DrengineError, OSError)):
                await asyncio.to_thread(NbdClient.of, uri)
    finally:
        await server.close()


@pytest.mark.parametrize("uri", ["", "nbd:", "nbd+unix:///x", "http://a/b", "nbd://h:99999999/x", "nbds://[::1/x"])
def test_what_is_no_address_is_said_to_be_none(uri: str) -> None:
    with pytest.raises(DrengineError, match="no NBD address"):
        NbdAddress.parse(uri)
