"""Certificates that are renewed, spoiled or removed on disk while we run."""

from __future__ import annotations

import datetime
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from drengine.transport.credentials import CredentialFamilies, Credentials
from drengine.transport.errors import BAD_TLS_FILES, TransportError
from drengine.transport.files import TlsFiles
from drengine.transport.tls import client_context, server_context
from drengine.wire import events as ev
from tests.clock import ManualClock
from tests.transport.certificates import NOW, Authority
from tests.transport.peers import agent, target
from tests.transport.test_tls import named

pytestmark = pytest.mark.fault(75)
DAY_SECONDS = 86400.0


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path / "ca")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(int(NOW.timestamp()) * 1_000_000_000)


def renew(files: TlsFiles, fresh: TlsFiles) -> None:
    """Put a renewed certificate and key in the place of the old ones, as a renewing program does."""
    for old, new in ((files.certificate, fresh.certificate), (files.key, fresh.key)):
        beside = old.with_suffix(".new")
        shutil.copyfile(new, beside)
        beside.rename(old)


def seconds(credentials: Credentials) -> int:
    return round(credentials.expiry_seconds()["certificate"] / DAY_SECONDS * 10)


def test_a_renewed_certificate_counts_from_the_next_handshake_on(authority: Authority, clock: ManualClock) -> None:
    files = authority.issue("target", days=(-1, 1))
    credentials = Credentials(files, server_context, role="target", clock=clock)
    before = credentials.context()
    assert credentials.context() is before, "nothing is read while nothing changes"
    assert seconds(credentials) == 10
    renew(files, authority.issue("renewed", days=(-1, 9)))
    assert credentials.context() is not before
    assert seconds(credentials) == 90
    assert credentials.rejected is None


SPOILED: dict[str, tuple[Callable[[TlsFiles, Authority], object], str]] = {
    "half written": (
        lambda files, _: files.certificate.write_bytes(files.certificate.read_bytes()[:200]), "tls-not-pem"
    ),
    "empty": (lambda files, _: files.key.write_bytes(b""), "tls-not-pem"),
    "only one of two": (
        lambda files, ca: shutil.copyfile(ca.issue("other").certificate, files.certificate), "tls-key-mismatch"
    ),
    "removed": (lambda files, _: files.certificate.unlink(), "tls-file-missing"),
    "a folder": (lambda files, _: (files.ca.unlink(), files.ca.mkdir()), "tls-file-unreadable"),
    "CA emptied": (lambda files, _: files.ca.write_bytes(b""), "tls-ca-empty"),
    "expired": (lambda files, ca: renew(files, ca.issue("old", days=(-9, -1))), "tls-own-expired"),
    "for later": (lambda files, ca: renew(files, ca.issue("later", days=(1, 9))), "tls-own-early"),
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILED)
def test_files_that_can_not_be_used_leave_the_old_ones_in_use_and_are_told_once(
    how: str, authority: Authority, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, reason = SPOILED[how]
    files = authority.issue("target", days=(-1, 1))
    ca = files.ca.read_bytes()
    credentials = Credentials(files, server_context, role="target", clock=clock)
    before = credentials.context()
    families = CredentialFamilies.of("test")
    assert [each.value for each in families.samples([credentials]) if each.family is families.rejected] == [0.0]
    spoil(files, authority)
    with caplog.at_level(logging.INFO, "drengine.transport"):
        for _ in range(3):
            assert credentials.context() is before
    assert credentials.rejected is not None and credentials.rejected.reason == reason
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert credentials.rejected.hint in caplog.text
    assert [each.value for each in families.samples([credentials]) if each.family is families.rejected] == [1.0]
    assert seconds(credentials) == 10
    if files.ca.is_dir():
        files.ca.rmdir()
    files.ca.write_bytes(ca)
    renew(files, authority.issue("renewed", days=(-1, 2)))
    assert credentials.context() is not before
    assert credentials.rejected is None
    assert [each.value for each in families.samples([credentials]) if each.family is families.rejected] == [0.0]


def test_a_renewal_in_two_steps_is_taken_up_after_the_second(authority: Authority, clock: ManualClock) -> None:
    files = authority.issue("target")
    credentials = Credentials(files, client_context, role="target", clock=clock)
    before = credentials.context()
    fresh = authority.issue("renewed", days=(-1, 5))
    shutil.copyfile(fresh.certificate, files.certificate)
    assert credentials.context() is before
    shutil.copyfile(fresh.key, files.key)
    assert credentials.context() is not before
    assert seconds(credentials) == 50


def test_a_key_that_becomes_readable_is_read_again(
    authority: Authority, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = authority.issue("target")
    credentials = Credentials(files, server_context, role="target", clock=clock)
    fresh = authority.issue("renewed", days=(-1, 5))
    real = Path.read_bytes
    with monkeypatch.context() as patch:

        def forbidden(path: Path) -> bytes:
            if path == files.key:
                raise PermissionError(13, "Permission denied")
            return real(path)

        patch.setattr(Path, "read_bytes", forbidden)
        renew(files, fresh)
        credentials.refresh()
        assert credentials.rejected is not None and credentials.rejected.reason == "tls-file-unreadable"
    files.key.chmod(0o640)
    credentials.refresh()
    assert credentials.rejected is None


def test_a_certificate_that_expires_is_told_at_the_start_and_any_renewal_is_better(
    authority: Authority, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    files = authority.issue("target", days=(-1, 1))
    credentials = Credentials(files, server_context, role="target", clock=clock)
    clock.advance(1.5 * DAY_SECONDS)
    assert credentials.expiry_seconds()["certificate"] == pytest.approx(-0.5 * DAY_SECONDS, abs=2)
    renew(files, authority.issue("late", days=(-1, 1.2)))
    credentials.refresh()
    assert credentials.rejected is None, "both have expired: the newer one it is"
    Credentials(files, server_context, role="target", clock=clock)
    assert "tls-own-expired" in caplog.text


def test_what_can_not_be_used_at_the_start_is_refused(authority: Authority, clock: ManualClock) -> None:
    files = authority.issue("target")
    files.key.write_bytes(b"")
    with pytest.raises(TransportError) as refused:
        Credentials(files, server_context, role="target", clock=clock)
    assert refused.value.kind is BAD_TLS_FILES


def test_metrics_tell_certificate_and_ca_by_role(authority: Authority, clock: ManualClock) -> None:
    families = CredentialFamilies.of("agent", ("source",))
    credentials = Credentials(authority.issue("shop", days=(-1, 1)), client_context, role="broker", clock=clock)
    samples = {(each.family.name, each.labels): each.value for each in families.samples([credentials], ("shop",))}
    assert samples["agent_certificate_rejected", ("shop", "broker")] == 0.0
    assert samples["agent_certificate_expiry_seconds", ("shop", "broker", "certificate")] == pytest.approx(86400, abs=2)
    assert samples["agent_certificate_expiry_seconds", ("shop", "broker", "ca")] == pytest.approx(30 * 86400, abs=2)


async def test_living_sessions_go_on_and_new_ones_see_the_renewed_certificate(
    authority: Authority, clock: ManualClock
) -> None:
    files = authority.issue("target")
    credentials = Credentials(files, server_context, role="target", clock=clock)
    client = client_context(authority.issue("agent"))
    async with target(tls=credentials.context) as there:
        first = await agent(there.port, tls=client)
        assert named(first) == "target"
        renew(files, authority.issue("renewed"))
        second = await agent(there.port, tls=client)
        assert named(second) == "renewed"
        for stream in (first, second):
            await stream.send(ev.Ping(7))
            assert await stream.receive() == ev.Pong(7)
            stream.abort()


async def test_an_expired_certificate_is_replaced_without_a_restart(authority: Authority, clock: ManualClock) -> None:
    files = authority.issue("target", days=(-1, 1), now=NOW - datetime.timedelta(days=1))
    credentials = Credentials(files, server_context, role="target", clock=clock)
    client = client_context(authority.issue("agent"))
    async with target(tls=credentials.context) as there:
        with pytest.raises(TransportError) as refused:
            await agent(there.port, tls=client)
        assert refused.value.reason == "tls-peer-expired"
        renew(files, authority.issue("renewed"))
        stream = await agent(there.port, tls=client)
        stream.abort()


async def test_a_new_ca_is_believed_and_the_old_one_no_longer(
    tmp_path: Path, authority: Authority, clock: ManualClock
) -> None:
    files = authority.issue("target")
    next_ca = Authority.make(tmp_path / "next", "next CA")
    credentials = Credentials(files, server_context, role="target", clock=clock)
    old = client_context(authority.issue("agent"))
    fresh = next_ca.issue("agent")
    both = tmp_path / "both.pem"
    both.write_bytes(authority.path.read_bytes() + next_ca.path.read_bytes())
    new = client_context(TlsFiles(fresh.certificate, fresh.key, both))
    async with target(tls=credentials.context) as there:
        with pytest.raises(TransportError):
            await agent(there.port, tls=new)
        shutil.copyfile(next_ca.path, files.ca)
        (await agent(there.port, tls=new)).abort()
        with pytest.raises(TransportError) as refused:
            await agent(there.port, tls=old)
        assert refused.value.reason == "tls-own-issuer"
