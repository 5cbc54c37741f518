"""The CA: what it issues real OpenSSL believes; what it remembers survives any crash, and is one for all processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from drengine.identity.authority import FORGOTTEN_SECONDS, Authority, Issued
from drengine.identity.errors import CA_REFUSED, CA_UNUSABLE
from drengine.identity.index import INDEX_FILE
from drengine.identity.keys import new_key, requested_key
from drengine.identity.names import Identity, Role
from drengine.identity.signing import SERVERS, SKEW_SECONDS
from drengine.model.errors import DrengineError, ErrorKind
from tests.clock import ManualClock

AGENT = Identity("main", Role.AGENT, "shop")
TARGET = Identity("main", Role.TARGET, "outpost")
PEM = serialization.Encoding.PEM


def issue(authority: Authority, identity: Identity = AGENT, **options: Any) -> Issued:
    if identity.role in SERVERS:
        options.setdefault("hosts", ("outpost.example", "127.0.0.1", "::1"))
    return authority.issue(identity, new_key().public_key(), **options)


def refusal(kind: ErrorKind, action: Callable[[], object]) -> str:
    with pytest.raises(DrengineError) as refused:
        action()
    assert refused.value.kind is kind, refused.value
    return refused.value.message


def openssl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("both_ways", [False, True])
def test_openssl_believes_a_certificate_for_the_side_of_its_role_only(
    tmp_path: Path, role: Role, both_ways: bool
) -> None:
    authority = Authority.create(tmp_path / "ca", "main")
    issued = issue(authority, Identity("main", role, "x"), both_ways=both_ways)
    file = tmp_path / "certificate.pem"
    file.write_bytes(issued.certificate)
    serves = role in SERVERS
    for purpose, allowed in (("sslserver", serves or both_ways), ("sslclient", not serves or both_ways)):
        done = openssl("verify", "-x509_strict", "-purpose", purpose, "-CAfile", tmp_path / "ca/ca.pem", file)
        assert (done.returncode == 0) is allowed, (purpose, done.stdout, done.stderr)
    text = openssl("x509", "-in", file, "-noout", "-text").stdout
    assert f"URI:drengine://main/{role}/x" in text
    assert "CA:FALSE" in text
    if serves:
        assert "DNS:outpost.example" in text and "IP Address:127.0.0.1" in text


def test_openssl_refuses_what_is_revoked_and_nothing_else(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", "main")
    revoked, kept = issue(authority), issue(authority, Identity("main", Role.AGENT, "web"))
    assert authority.revoke(identity=AGENT) == authority.entries()[:1]
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authority.certificate + (tmp_path / "ca/crl.pem").read_bytes())
    for issued, code in ((revoked, 2), (kept, 0)):
        (tmp_path / "one.pem").write_bytes(issued.certificate)
        done = openssl("verify", "-crl_check", "-CAfile", trusted, tmp_path / "one.pem")
        assert done.returncode == code, (done.stdout, done.stderr)
        assert ("certificate revoked" in done.stderr) is bool(code)


def test_a_request_gives_its_key_and_nothing_else(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", "main")
    made = openssl(
        *("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=root"),
        *("-addext", "subjectAltName=URI:drengine://main/orchestrator/root", "-keyout", tmp_path / "key.pem"),
        *("-out", tmp_path / "csr.pem"),
    )
    assert made.returncode == 0, made.stderr
    key = requested_key((tmp_path / "csr.pem").read_bytes())
    certificate = x509.load_pem_x509_certificate(authority.issue(AGENT, key).certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [each.value for each in names] == [str(AGENT)]
    assert certificate.public_key() == key
    assert certificate.subject.rfc4514_string() == "CN=shop"


def test_requests_that_prove_nothing_are_refused() -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    good = builder.sign(new_key(), hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    forged = x509.load_der_x509_csr(good[:-1] + bytes([good[-1] ^ 1])).public_bytes(PEM)
    weak = builder.sign(rsa.generate_private_key(65537, 1024), hashes.SHA256()).public_bytes(PEM)
    other = builder.sign(ec.generate_private_key(ec.SECP521R1()), hashes.SHA256()).public_bytes(PEM)
    for pem, why in ((forged, "not signed"), (weak, "too weak"), (other, "too weak"), (b"", "no certificate request")):
        assert why in refusal(CA_REFUSED, lambda pem=pem: requested_key(pem))  # type: ignore[misc]


def test_a_certificate_lives_for_its_time_and_never_longer_than_its_authority(tmp_path: Path) -> None:
    clock = ManualClock()
    authority = Authority.create(tmp_path / "ca", "main", seconds=3600, clock=clock)
    now = clock.now_ns() // 10**9
    short, long = issue(authority, seconds=600).entry, issue(authority, seconds=10**6).entry
    assert (short.begins_at, short.ends_at) == (now - SKEW_SECONDS, now + 600)
    assert long.ends_at == now + 3600 == authority.ends_at
    clock.advance(601)
    assert [each.state(clock.now_ns() / 1e9) for each in authority.entries()] == ["expired", "valid"]
    clock.advance(3000)
    assert "expired" in refusal(CA_REFUSED, lambda: issue(authority))


def test_renewing_keeps_the_names_and_the_old_certificate(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", "main")
    first = issue(authority, TARGET, both_ways=True).entry
    second = authority.renew(TARGET, new_key().public_key()).entry
    assert (second.identity, second.hosts, second.both_ways) == (first.identity, first.hosts, first.both_ways)
    assert second.serial != first.serial
    assert [each.revoked_at for each in authority.entries()] == [None, None]
    assert "no certificate" in refusal(CA_REFUSED, lambda: authority.renew(AGENT, new_key().public_key()))
    authority.revoke(serial=second.serial)
    assert "revoked" in refusal(CA_REFUSED, lambda: authority.renew(TARGET, new_key().public_key()))
    assert [each.revoked_at is None for each in authority.entries()] == [True, False]


def test_what_may_not_be_issued_is_refused(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", "main")
    assert "site" in refusal(CA_REFUSED, lambda: issue(authority, Identity("other", Role.AGENT, "shop")))
    assert "needs the names" in refusal(CA_REFUSED, lambda: issue(authority, TARGET, hosts=()))
    for host in ("", "-x", "a b", "x/y", "*", "a.*.b", "127.0.0.1/8", "é", "a" * 254):
        assert "neither" in refusal(CA_REFUSED, lambda host=host: issue(authority, TARGET, hosts=(host,)))  # type: ignore[misc]
    assert "still valid" in refusal(CA_REFUSED, lambda: authority.revoke(identity=AGENT))
    assert "still valid" in refusal(CA_REFUSED, lambda: authority.revoke(serial="00"))
    assert authority.entries() == ()


def test_what_expired_long_ago_leaves_the_index_and_the_crl(tmp_path: Path) -> None:
    clock = ManualClock()
    authority = Authority.create(tmp_path / "ca", "main", clock=clock)
    issue(authority, seconds=600)
    authority.revoke(identity=AGENT)
    assert len(x509.load_pem_x509_crl(authority.write_crl())) == 1
    clock.advance(601)
    assert len(x509.load_pem_x509_crl(authority.write_crl())) == 0
    issue(authority, seconds=600)
    assert len(authority.entries()) == 2
    clock.advance(FORGOTTEN_SECONDS)
    issue(authority)
    assert len(authority.entries()) == 2


def test_a_key_with_a_passphrase_signs_with_it_only_and_is_listed_without(tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    issue(Authority.create(folder, "main", passphrase=b"correct horse"))
    assert b"ENCRYPTED PRIVATE KEY" in (folder / "ca.key").read_bytes()
    assert len(Authority(folder).entries()) == 1
    assert "needs its passphrase" in refusal(CA_UNUSABLE, lambda: issue(Authority(folder)))
    assert "wrong" in refusal(CA_UNUSABLE, lambda: issue(Authority(folder, passphrase=b"battery")))
    issue(Authority(folder, passphrase=b"correct horse"))
    assert len(Authority(folder).entries()) == 2


def test_a_directory_that_is_unsafe_damaged_or_used_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    assert "drengine ca init" in refusal(CA_UNUSABLE, lambda: Authority(folder))
    authority = Authority.create(folder, "main")
    issue(authority)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "ca.key").stat().st_mode & 0o777 == 0o600
    assert "already" in refusal(CA_REFUSED, lambda: Authority.create(folder, "main"))
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").touch()
    assert "not empty" in refusal(CA_REFUSED, lambda: Authority.create(tmp_path / "used", "main"))
    index = (folder / INDEX_FILE).read_bytes()
    for content in (
        b"",
        index[:-9],
        index.replace(b'"version": 2', b'"version": 3'),
        index.replace(b"serial", b"cereal"),
    ):
        (folder / INDEX_FILE).write_bytes(content)
        refusal(CA_UNUSABLE, lambda: issue(authority))
    (folder / INDEX_FILE).unlink()
    assert INDEX_FILE in refusal(CA_UNUSABLE, lambda: issue(authority))
    (folder / "ca.key").chmod(0o640)
    assert "mode 640" in refusal(CA_UNUSABLE, lambda: Authority(folder))


ISSUE_MANY = """
import sys
from pathlib import Path
from drengine.identity.authority import Authority
from drengine.identity.keys import new_key
from drengine.identity.names import Identity
folder, name, count = sys.argv[1:]
authority = Authority(Path(folder))
for _ in range(int(count)):
    issued = authority.issue(Identity.parse(f"drengine://main/agent/{name}"), new_key().public_key())
    print(issued.entry.serial)
"""


def test_processes_that_issue_at_once_share_no_serial_and_lose_no_entry(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", "main")
    running = [
        subprocess.Popen(
            [sys.executable, "-c", ISSUE_MANY, str(tmp_path / "ca"), f"source-{number}", "20"],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    printed = [line for process in running for line in process.communicate(timeout=60)[0].split()]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(printed) == len(set(printed)) == 60
    assert sorted(printed) == sorted(each.serial for each in authority.entries())


CALLS = ("open", "write", "fsync", "rename", "unlink", "ftruncate", "fchmod", "close", "mkdir")
"""Through `os`, these make everything that is there after a crash."""


def killed_before(call: int, action: Callable[[], object]) -> bool:
    """Run it in a child process that is killed before its n-th call of the system; whether it came so far."""

    def count(real: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **more: object) -> object:
            nonlocal left
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return real(*arguments, **more)

        return counted

    def child() -> NoReturn:
        code = 1
        try:
            for name in CALLS:
                setattr(os, name, count(getattr(os, name)))
            action()
            code = 0
        finally:
            os._exit(code)

    left = call
    pid = os.fork()
    if not pid:
        child()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return True
    assert status == 0
    return False


def crashes(tmp_path: Path, prepare: Callable[[Path], object], action: Callable[[Path], object]) -> list[Path]:
    """What each crash of `action` leaves, from before its first call to after its last."""
    left = []
    for call in range(200):
        folder = tmp_path / f"crash-{call}" / "ca"
        folder.parent.mkdir()
        prepare(folder)
        goes_on = killed_before(call, lambda folder=folder: action(folder))  # type: ignore[misc]
        left.append(folder)
        if not goes_on:
            assert call > 10
            return left
    raise AssertionError("it does not end")


def copy_of(made: Path) -> Callable[[Path], object]:
    return lambda folder: shutil.copytree(made, folder)


def test_a_killed_init_leaves_a_ca_or_a_place_for_one(tmp_path: Path) -> None:
    for folder in crashes(tmp_path, lambda _: None, lambda folder: Authority.create(folder, "main")):
        is_made = (folder / "ca.key").exists()
        authority = Authority(folder) if is_made else Authority.create(folder, "main")
        issue(authority)
        assert (folder / "ca.pem").read_bytes() == authority.certificate
        assert len(authority.entries()) == 1


def test_a_killed_issue_leaves_the_index_before_or_after_it(tmp_path: Path) -> None:
    made = Authority.create(tmp_path / "made", "main")
    issue(made)
    states = set()
    for folder in crashes(tmp_path, copy_of(made.folder), lambda folder: issue(Authority(folder))):
        authority = Authority(folder)
        states.add(count := len(authority.entries()))
        assert authority.entries()[:1] == made.entries()
        issue(authority)
        assert len(authority.entries()) == count + 1
    assert states == {1, 2}


def test_a_killed_revocation_is_done_or_can_be_done_again(tmp_path: Path) -> None:
    made = Authority.create(tmp_path / "made", "main")
    issue(made)
    states = set()
    for folder in crashes(tmp_path, copy_of(made.folder), lambda folder: Authority(folder).revoke(identity=AGENT)):
        authority = Authority(folder)
        is_revoked = authority.entries()[0].revoked_at is not None
        crl = folder / "crl.pem"
        is_told = crl.exists() and len(x509.load_pem_x509_crl(crl.read_bytes())) == 1
        states.add((is_revoked, is_told))
        (revoked,) = authority.revoke(identity=AGENT)
        assert revoked.revoked_at is not None
        assert len(x509.load_pem_x509_crl(crl.read_bytes())) == 1
    assert states == {(False, False), (True, False), (True, True)}
