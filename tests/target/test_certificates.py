"""The target's certificates while it runs: renewed, spoiled, told; and what an agent says of those it meets."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import signal
import ssl
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from drengine.nbd.client import NbdClient
from drengine.target.config import TlsOptions
from drengine.transport.causes import CAUSES
from drengine.transport.files import TlsFiles
from drengine.transport.tls import client_context
from drengine_agent.daemon.service import Agent
from tests.agent.daemon.test_service import configured
from tests.target.agent import running
from tests.target.test_process import Process, target
from tests.transport.certificates import NOW, Authority
from tests.transport.test_credentials import renew

pytestmark = [pytest.mark.timeout(90), pytest.mark.fault(75)]


async def until(holds: Callable[[], object], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 (another process is waited for)
            await asyncio.sleep(0.02)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path / "ca")


def options(files: TlsFiles) -> TlsOptions:
    return TlsOptions(files.certificate, files.key, files.ca)


def config(folder: Path, files: TlsFiles) -> tuple[str, str]:
    path = folder / "target.toml"
    path.write_text(
        f'store = "{folder}/store"\nnbd_socket = "{folder}/nbd.sock"\nmetrics = "127.0.0.1:0"\n'
        f'[tls]\ncertificate = "{files.certificate}"\nkey = "{files.key}"\nca = "{files.ca}"\n'
    )
    return "--config", str(path)


async def shown(address: tuple[str, int], client: ssl.SSLContext) -> tuple[str, asyncio.StreamWriter]:
    """The name in the certificate that a new connection is shown, and the connection."""
    _, writer = await asyncio.open_connection(*address, ssl=client, server_hostname="127.0.0.1")
    certificate = writer.get_extra_info("peercert")
    return dict(pair[0] for pair in certificate["subject"])["commonName"], writer


async def scrape(process: Process) -> str:
    def ask() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{process.metrics_port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    return await asyncio.to_thread(ask)


def gauge(text: str, name: str) -> float:
    return next(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


EXPIRY = 'drengine_target_certificate_expiry_seconds{file="certificate",role="target"}'
REJECTED = 'drengine_target_certificate_rejected{role="target"}'


async def test_a_renewed_certificate_is_taken_up_by_the_running_target_and_its_nbd_server(
    tmp_path: Path, authority: Authority
) -> None:
    files = authority.issue("target", days=(-1, 1))
    client = client_context(authority.issue("agent"))
    async with target(tmp_path / "store", *config(tmp_path, files)) as process:
        name, living = await shown(process.address, client)
        assert name == "target"
        assert 0 < gauge(await scrape(process), EXPIRY) <= 86400
        renew(files, authority.issue("renewed", days=(-1, 9)))
        name, other = await shown(process.address, client)
        assert name == "renewed"
        text = await scrape(process)
        assert 8 * 86400 < gauge(text, EXPIRY) <= 9 * 86400
        assert gauge(text, REJECTED) == 0
        nbd_tls = client_context(authority.issue("agent"))
        nbd_tls.check_hostname = False

        def nbd_name() -> str:
            # The store has no source yet: the handshake is all that there is to see.
            with contextlib.suppress(Exception):
                NbdClient(str(tmp_path / "nbd.sock"), "shop/data", tls=nbd_tls)
            return seen[-1]

        seen: list[str] = []
        real = nbd_tls.wrap_socket

        def noting(sock: object, **more: object) -> ssl.SSLSocket:
            made = real(sock, **more)  # type: ignore[arg-type]
            certificate = made.getpeercert() or {}
            seen.append(dict(pair[0] for pair in certificate["subject"])["commonName"])  # type: ignore[index, misc]
            return made

        nbd_tls.wrap_socket = noting  # type: ignore[method-assign]
        assert await asyncio.to_thread(nbd_name) == "renewed"
        assert not living.is_closing()
        for each in (living, other):
            each.close()
        assert await process.end(signal.SIGTERM) == 0


async def test_a_hang_up_has_files_read_again_and_never_ends_the_target(tmp_path: Path, authority: Authority) -> None:
    files = authority.issue("target")
    client = client_context(authority.issue("agent"))
    async with target(tmp_path / "store", *config(tmp_path, files)) as process:
        process.process.send_signal(signal.SIGHUP)
        await until(lambda: any("read again" in line["message"] for line in process.lines))
        files.key.write_bytes(b"")
        for _ in range(2):
            process.process.send_signal(signal.SIGHUP)
        await until(lambda: any("not taken" in line["message"] for line in process.lines))
        assert gauge(await scrape(process), REJECTED) == 1
        name, writer = await shown(process.address, client)
        assert name == "target"
        writer.close()
        assert process.process.returncode is None
        assert await process.end(signal.SIGTERM) == 0
    async with target(tmp_path / "plain") as process:
        process.process.send_signal(signal.SIGHUP)
        await until(lambda: any("nothing to read again" in line["message"] for line in process.lines))
        assert await process.end(signal.SIGTERM) == 0


@contextlib.asynccontextmanager
async def replicating(folder: Path, address: tuple[str, int], files: TlsFiles) -> AsyncIterator[Agent]:
    tls = {name: str(path) for name in ("certificate", "key", "ca", "crl") if (path := getattr(files, name))}
    agent = Agent(configured(folder, tracker="scan", target=f"{address[0]}:{address[1]}", tls=tls))
    task = asyncio.create_task(agent.run())
    try:
        yield agent
    finally:
        agent.stop()
        await task


def reason(agent: Agent) -> tuple[object, object]:
    status = agent.status()
    return status["state"], status["reason"]


async def test_an_agent_says_what_is_wrong_with_the_targets_certificate_and_comes_back_when_it_is_renewed(
    tmp_path: Path, authority: Authority
) -> None:
    files = authority.issue("target", days=(-1, 1), now=NOW - datetime.timedelta(days=1))
    async with (
        running(tmp_path / "store", tls=options(files)) as site,
        replicating(tmp_path, site.address, authority.issue("agent")) as agent,
    ):
        await until(lambda: reason(agent) == ("DISCONNECTED", "tls-failed"))
        status = agent.status()
        assert status["hint"] == CAUSES["tls-peer-expired"].hint
        assert "expired" in str(status["detail"])
        renew(files, authority.issue("renewed"))
        await until(lambda: reason(agent)[0] == "CONTINUOUS")
        assert agent.status()["hint"] == ""


async def test_an_agent_takes_up_its_own_renewed_certificate_and_keeps_it_when_the_next_is_spoiled(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    files = authority.issue("agent", days=(-1, 1), now=NOW - datetime.timedelta(days=1))
    server = authority.issue("target")
    async with (
        running(tmp_path / "store", tls=options(server)) as site,
        replicating(tmp_path, site.address, files) as agent,
    ):
        await until(lambda: reason(agent) == ("DISCONNECTED", "tls-failed"))
        assert agent.status()["hint"] == CAUSES["tls-own-expired"].hint
        renew(files, authority.issue("renewed"))
        await until(lambda: reason(agent)[0] == "CONTINUOUS")
        files.certificate.write_bytes(b"")
        site.daemon.reception.end_all(site.daemon.watch.trouble)  # type: ignore[arg-type]
        credentials = agent.connector.credentials
        assert credentials is not None
        await until(lambda: credentials.rejected is not None and reason(agent)[0] == "CONTINUOUS")
        assert credentials.rejected is not None and credentials.rejected.reason == "tls-not-pem"


async def test_certificates_that_can_not_be_used_stop_no_capture_and_are_told(
    tmp_path: Path, authority: Authority
) -> None:
    files = authority.issue("agent")
    key = files.key.read_bytes()
    files.key.write_bytes(authority.issue("other").key.read_bytes())
    async with (
        running(tmp_path / "store", tls=options(authority.issue("target"))) as site,
        replicating(tmp_path, site.address, files) as agent,
    ):
        await until(lambda: reason(agent) == ("DISCONNECTED", "tls-failed"))
        assert agent.status()["hint"] == CAUSES["tls-key-mismatch"].hint
        files.key.write_bytes(key)
        await until(lambda: reason(agent)[0] == "CONTINUOUS")
