"""Each way in which TLS fails is told by its cause, with what to do: by the check of the files and by both peers."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

from drengine.config import BAD_CONFIG
from drengine.model.errors import DrengineError
from drengine.transport.causes import CAUSES, cause_of
from drengine.transport.errors import BAD_TLS_FILES, REASONS, TLS_FAILED, TransportError
from drengine.transport.files import TlsFiles
from drengine.transport.tls import client_context, server_context
from drengine.transport.tls_check import Side, _is_named, check_files
from tests.transport.certificates import Authority
from tests.transport.peers import agent, target

pytestmark = pytest.mark.fault(40)


@dataclass(frozen=True)
class Ground:
    """Two authorities, of which the peers trust the first; and good files for either side."""

    folder: Path
    authority: Authority
    stranger: Authority

    def good(self, side: Side) -> TlsFiles:
        return self.authority.issue("target" if side is Side.SERVER else "agent")

    def put(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def without_intermediate(self) -> TlsFiles:
        return replace(self.authority.intermediate("intermediate").issue("leaf"), ca=self.authority.path)

    def with_intermediate(self) -> TlsFiles:
        files = self.without_intermediate()
        chain = files.certificate.read_bytes() + (self.authority.folder / "intermediate.pem").read_bytes()
        return replace(files, certificate=self.put("chain.pem", chain))


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path, Authority.make(tmp_path / "ca"), Authority.make(tmp_path / "other", "another CA"))


@dataclass(frozen=True)
class Fault:
    """What one side has; what the check says of it, and what both sides say when they meet, if they do."""

    make: Callable[[Ground], TlsFiles]
    refused: str = ""
    doubted: str = ""
    own: str = ""
    peer: str = ""


FAULTS = {
    "expired": Fault(
        lambda g: g.authority.issue("x", days=(-10, -1)),
        "tls-own-expired", own="tls-own-expired", peer="tls-peer-expired",
    ),
    "not valid yet": Fault(
        lambda g: g.authority.issue("x", days=(1, 10)), "tls-own-early", own="tls-own-refused", peer="tls-peer-early"
    ),
    "another CA": Fault(
        lambda g: replace(g.stranger.issue("x"), ca=g.authority.path),
        doubted="tls-own-issuer", own="tls-own-issuer", peer="tls-peer-issuer",
    ),
    "another CA of the same name": Fault(
        lambda g: replace(Authority.make(g.folder / "twin").issue("x"), ca=g.authority.path),
        doubted="tls-own-issuer", own="tls-own-refused", peer="tls-peer-signature",
    ),
    "no intermediate": Fault(
        Ground.without_intermediate, doubted="tls-own-issuer", own="tls-own-issuer", peer="tls-peer-issuer"
    ),
    "self-signed": Fault(
        lambda g: g.authority.issue("x", self_signed=True),
        doubted="tls-own-self-signed", own="tls-own-issuer", peer="tls-peer-self-signed",
    ),
    "key of another": Fault(
        lambda g: replace(g.authority.issue("x"), key=g.authority.issue("y").key), "tls-key-mismatch"
    ),
    "key with a passphrase": Fault(lambda g: g.authority.issue("x", password=b"secret"), "tls-key-encrypted"),
    "certificate is rubbish": Fault(
        lambda g: replace(g.authority.issue("x"), certificate=g.put("r.pem", b"rubbish")), "tls-not-pem"
    ),
    "certificate is torn": Fault(
        lambda g: replace(
            g.authority.issue("x"),
            certificate=g.put("r.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        ),
        "tls-not-pem",
    ),
    "key is rubbish": Fault(lambda g: replace(g.authority.issue("x"), key=g.put("r.key", b"rubbish")), "tls-not-pem"),
    "key and certificate exchanged": Fault(
        lambda g: TlsFiles(g.authority.issue("x").key, g.authority.folder / "x.pem", g.authority.path), "tls-not-pem"
    ),
    "CA is rubbish": Fault(lambda g: replace(g.authority.issue("x"), ca=g.put("r.pem", b"rubbish")), "tls-not-pem"),
    "CA file empty": Fault(lambda g: replace(g.authority.issue("x"), ca=g.put("empty.pem", b"\n")), "tls-ca-empty"),
    "CA expired": Fault(
        lambda g: Authority.make(g.folder / "old", "old CA", days=(-9, -1)).issue("x"), "tls-ca-expired"
    ),
    "CA is no authority": Fault(
        lambda g: replace(g.authority.issue("x"), ca=g.authority.issue("leaf").certificate),
        doubted="tls-ca-no-authority",
    ),
    "file missing": Fault(
        lambda g: replace(g.authority.issue("x"), certificate=g.folder / "nowhere.pem"), "tls-file-missing"
    ),
    "file unreadable": Fault(lambda g: replace(g.authority.issue("x"), key=g.folder), "tls-file-unreadable"),
}  # fmt: skip


def with_purpose(ground: Ground, side: Side) -> TlsFiles:
    """May be used for the other side only."""
    other = Usage.CLIENT_AUTH if side is Side.SERVER else Usage.SERVER_AUTH
    return ground.authority.issue("x", usage=(other,))


async def meet(there: ssl.SSLContext | None, here: ssl.SSLContext | None) -> tuple[TransportError, str]:
    """The agent's error and the target's reason."""
    async with target(tls=there) as peer:
        with pytest.raises(DrengineError) as caught:
            async with asyncio.timeout(20):
                await agent(peer.port, tls=here)
        await peer.until(lambda: bool(peer.failures))
        assert peer.streams == [] or there is None
        error = caught.value
        assert error.hint == (CAUSES[error.reason].hint if error.reason in CAUSES else error.hint)  # type: ignore[attr-defined]
        return error, peer.failures[0]  # type: ignore[return-value]


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("fault", FAULTS)
async def test_each_fault_is_told_by_its_cause(fault: str, side: Side, ground: Ground) -> None:
    case = FAULTS[fault]
    files = case.make(ground)
    make = server_context if side is Side.SERVER else client_context
    if case.refused:
        with pytest.raises(TransportError) as refused:
            check_files(files, side, now=time.time())
        error = refused.value
        assert (error.kind, error.reason, error.hint) == (BAD_TLS_FILES, case.refused, CAUSES[case.refused].hint)
        assert any(str(path) in error.message for path in files.paths)
    else:
        report = check_files(files, side, now=time.time())
        assert case.doubted in [doubt.reason for doubt in report.doubts]
    if not case.own:
        if case.refused and case.refused != "tls-ca-expired":
            with pytest.raises(TransportError) as unusable:
                make(files)
            assert unusable.value.reason == case.refused
        return
    ours = make(files)
    if side is Side.SERVER:
        error, theirs = await meet(ours, client_context(ground.good(Side.CLIENT)))
        assert (error.kind, error.reason, theirs) == (TLS_FAILED, case.peer, case.own)
    else:
        error, theirs = await meet(server_context(ground.good(Side.SERVER)), ours)
        assert (error.kind, error.reason, theirs) == (TLS_FAILED, case.own, case.peer)


@pytest.mark.parametrize("side", Side)
async def test_a_certificate_for_the_other_side_is_told(side: Side, ground: Ground) -> None:
    files = with_purpose(ground, side)
    with pytest.raises(TransportError) as refused:
        check_files(files, side, now=time.time())
    assert refused.value.reason == "tls-own-purpose"
    if side is Side.SERVER:
        error, theirs = await meet(server_context(files), client_context(ground.good(Side.CLIENT)))
        assert (error.reason, theirs) == ("tls-peer-purpose", "tls-own-purpose")
    else:
        error, theirs = await meet(server_context(ground.good(Side.SERVER)), client_context(files))
        assert (error.reason, theirs) == ("tls-own-purpose", "tls-peer-purpose")


async def test_a_certificate_for_another_address_is_told(ground: Ground) -> None:
    files = ground.authority.issue("x", host="127.0.0.2")
    report = check_files(files, Side.SERVER, now=time.time(), address="127.0.0.1")
    assert [doubt.reason for doubt in report.doubts] == ["tls-own-name"]
    assert "127.0.0.2" in report.doubts[0].message
    assert check_files(files, Side.SERVER, now=time.time(), address="127.0.0.2").doubts == ()
    assert check_files(files, Side.SERVER, now=time.time()).doubts == (), "nobody knows how peers call it"
    error, theirs = await meet(server_context(files), client_context(ground.good(Side.CLIENT)))
    assert (error.reason, theirs) == ("tls-peer-name", "tls-own-refused")


async def test_an_agent_without_certificate_is_told(ground: Ground) -> None:
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.load_verify_locations(ground.authority.path)
    error, theirs = await meet(server_context(ground.good(Side.SERVER)), bare)
    assert (error.reason, theirs) == ("tls-own-missing", "tls-peer-missing")


async def test_a_version_that_is_too_old_is_told(ground: Ground) -> None:
    old = client_context(ground.good(Side.CLIENT))
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    error, theirs = await meet(server_context(ground.good(Side.SERVER)), old)
    assert (error.reason, theirs) == ("tls-version", "tls-version")


async def test_plain_text_to_tls_and_tls_to_plain_text_are_told(ground: Ground) -> None:
    error, theirs = await meet(server_context(ground.good(Side.SERVER)), None)
    assert (error.reason, theirs) == ("tls-unexpected", "tls-peer-plain")
    assert "certificate" in error.hint
    error, theirs = await meet(None, client_context(ground.good(Side.CLIENT)))
    assert (error.reason, theirs) == ("tls-peer-plain", "tls-unexpected")


@pytest.mark.parametrize("side", Side)
def test_good_files_leave_no_doubt(side: Side, ground: Ground) -> None:
    for files in (ground.good(side), ground.with_intermediate()):
        report = check_files(files, side, now=time.time(), address="127.0.0.1")
        assert report.doubts == ()
        assert report.certificate.names == ("127.0.0.1",)


@pytest.mark.parametrize(
    ("names", "address", "named"),
    [
        ("a.example", "a.example", True),
        ("a.example", "A.example.", True),
        ("*.example", "a.example", True),
        ("*.example", "b.a.example", False),
        ("a.example", "b.example", False),
        ("a.example", "a", False),
    ],
)
def test_names_are_compared_as_tls_does(names: str, address: str, named: bool) -> None:
    assert _is_named(address, (names,)) is named


def test_certificate_key_and_ca_belong_together(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert TlsFiles.together(None, None, None, where="[tls]") is None
    assert TlsFiles.together(path, path, path, where="[tls]") == TlsFiles(path, path, path)
    for some in ((path, None, None), (path, path, None), (None, path, path)):
        with pytest.raises(DrengineError, match=r"a file: \[tls\] needs certificate, key and ca together") as refused:
            TlsFiles.together(*some, where="a file: [tls]")
        assert refused.value.kind is BAD_CONFIG


def test_every_cause_is_a_bounded_reason_with_a_hint() -> None:
    for code, cause in CAUSES.items():
        assert code == cause.code and code.startswith(("tls-", "identity-")) and code in REASONS
        assert cause.hint and cause.meaning


def test_whatever_openssl_says_has_a_cause() -> None:
    for number in range(256):
        error = ssl.SSLCertVerificationError(1, "refused")
        error.verify_code = number
        assert cause_of(error) in CAUSES.values()
    for reason in ("WRONG_VERSION_NUMBER", "TLSV1_ALERT_UNKNOWN_CA", "NOBODY_KNOWS_THIS", None):
        other = ssl.SSLError(1, "failed")
        other.reason = reason  # type: ignore[assignment]
        assert cause_of(other) in CAUSES.values()
