"""Hosts join with tokens: who may, as what, how often; and who stands in between learns nothing."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa

from drengine.audit import Outcome
from drengine.audit.verify import read_entries
from drengine.config import Address
from drengine.enrolment import client, http
from drengine.enrolment.client import enrol, renew
from drengine.enrolment.messages import CERTIFICATE_HEADER, EnrolRequest, IssuedAnswer
from drengine.enrolment.place import Place, request_for
from drengine.identity.authority import LIVING_MAX, Authority
from drengine.identity.errors import EnrolmentError
from drengine.identity.keys import new_key
from drengine.identity.names import Identity, Role
from drengine.identity.tokens import Invitation
from drengine.model.clock import SystemClock
from drengine.model.errors import DrengineError
from drengine.transport.errors import TransportError
from drengine.transport.files import TlsFiles
from drengine.transport.tls import server_context
from drengine.transport.tls_check import Side, check_files
from tests.clock import ManualClock
from tests.enrolment.site import Site, serving
from tests.identity.test_authority import killed_before


async def refused(invitation: Invitation, name: str, place: Place) -> str:
    with pytest.raises(EnrolmentError) as error:
        await enrol(invitation, name, place)
    return error.value.reason


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with serving(tmp_path) as made:
        yield made


async def test_a_host_gets_a_certificate_for_a_key_that_never_left_it(site: Site) -> None:
    place = site.place("shop")
    identity = await enrol(site.invitation(name="sho*"), "shop", place)
    assert str(identity) == "drengine://main/agent/shop"
    assert check_files(place.files, Side.CLIENT, now=time.time()).doubts == ()
    assert place.files.key.stat().st_mode & 0o777 == 0o600
    assert place.folder.stat().st_mode & 0o777 == 0o700
    assert place.authority == site.address
    (entry,) = (each for each in site.authority.entries() if "agent" in each.identity)
    assert int(entry.serial, 16) == place.certificate().serial_number
    assert not list(place.folder.glob("pending*"))


async def test_a_server_gets_the_addresses_that_its_token_names(site: Site) -> None:
    invitation = site.invitation(Role.TARGET, "outpost", hosts=("outpost.example", "192.0.2.7"))
    place = site.place("outpost")
    await enrol(invitation, "outpost", place)
    assert check_files(place.files, Side.SERVER, now=time.time(), address="192.0.2.7").doubts == ()
    with pytest.raises(DrengineError):
        site.authority.create_token(Role.BROKER, "broker", seconds=60)
    with pytest.raises(DrengineError):
        site.authority.create_token(Role.AUTHORITY, "other", seconds=60)


async def test_a_token_that_is_used_up_revoked_or_for_others_gets_nothing(site: Site) -> None:
    once = site.invitation()
    await enrol(once, "shop", site.place("shop"))
    assert await refused(once, "mill", site.place("mill")) == "token-used"
    pattern = site.invitation(name="shop-*")
    for name in ("mill", "shop", "Shop-1", "shop-1/x", "", "x" * 70):
        assert await refused(pattern, name, site.place("mill")) == "token-name"
    site.authority.revoke_token(pattern.id)
    assert await refused(pattern, "shop-1", site.place("mill")) == "token-revoked"
    guessed = Invitation(site.address, pattern.pin, once.id, bytes(20))
    assert await refused(guessed, "mill", site.place("mill")) == "token-unknown"
    assert [each.used for each in site.authority.index().tokens] == [1, 0]
    assert not site.place("mill").is_enrolled


async def test_who_was_put_out_does_not_come_back_with_the_token_that_brought_him(site: Site) -> None:
    """A token for many hosts lives on, and a host that was taken over may have kept it."""
    for options in ({}, {"replace": True}):
        fleet = site.invitation(name="*", uses=10, **options)
        await enrol(fleet, "shop", site.place(f"shop-{fleet.id}"))
        site.revoke("shop")
        assert await refused(fleet, "shop", site.place(f"again-{fleet.id}")) == "identity-revoked"
        await enrol(fleet, f"mill-{fleet.id}", site.place(f"mill-{fleet.id}"))  # who was not revoked
    await enrol(site.invitation(), "shop", site.place("anew"))  # made knowingly, since


async def test_a_host_that_asks_without_end_gets_no_endless_index(site: Site) -> None:
    once = site.invitation()
    shop = site.place("shop")
    await enrol(once, "shop", shop)
    _, key = shop.pair()
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    for _ in range(LIVING_MAX - 1):
        site.authority.enrol(once.id, once.secret, "shop", key.public_key(), seconds=3600)
    with pytest.raises(EnrolmentError, match=f"{LIVING_MAX} certificates"):
        site.authority.enrol(once.id, once.secret, "shop", key.public_key(), seconds=3600)
    with pytest.raises(EnrolmentError, match=f"{LIVING_MAX} certificates"):
        await renew(shop, clock=SystemClock())
    # An operator still may.
    site.authority.renew(Identity("main", Role.AGENT, "shop"), key.public_key(), seconds=3600)


async def test_a_token_is_over_when_its_time_is(tmp_path: Path) -> None:
    clock = ManualClock(time.time_ns())
    async with serving(tmp_path, clock=clock) as site:
        invitation = site.invitation(uses=2, seconds=60)
        await enrol(invitation, "shop", site.place("shop"))
        clock.advance(60)
        assert await refused(invitation, "mill", site.place("mill")) == "token-expired"


async def test_a_name_that_lives_is_taken_only_by_a_token_that_says_so(site: Site) -> None:
    first = await site.joined("shop")
    assert await refused(site.invitation(uses=2), "shop", site.place("thief")) == "identity-taken"
    assert not site.place("thief").is_enrolled
    await enrol(site.invitation(replace=True), "shop", site.place("new"))
    states = {each.serial: each.state(time.time()) for each in site.authority.entries() if "shop" in each.identity}
    assert states == {
        f"{first.certificate().serial_number:016x}": "revoked",
        f"{site.place('new').certificate().serial_number:016x}": "valid",
    }
    crl = x509.load_pem_x509_crl((site.folder / "ca/crl.pem").read_bytes())
    assert crl.get_revoked_certificate_by_serial_number(first.certificate().serial_number) is not None
    site.revoke("shop")
    assert str(await enrol(site.invitation(), "shop", site.place("third"))).endswith("/shop")


async def test_a_name_that_the_broker_would_take_for_anothers_is_refused(site: Site) -> None:
    """Mosquitto knows a client by its common name alone."""
    await site.joined("shop")
    await enrol(site.invitation(Role.TARGET, hosts=("127.0.0.1",)), "shop", site.place("outpost"))  # it never connects
    assert await refused(site.invitation(Role.HOST), "shop", site.place("other")) == "identity-taken"
    assert await refused(site.invitation(Role.ORCHESTRATOR), "shop", site.place("other")) == "identity-taken"
    assert await refused(site.invitation(), "orchestrator", site.place("other")) == "request-refused"
    await site.joined("orchestrator", Role.ORCHESTRATOR)


async def test_whoever_lost_the_answer_asks_again_without_a_second_use(site: Site) -> None:
    invitation, place = site.invitation(), site.place("shop")
    place.folder.mkdir()
    body = EnrolRequest(invitation.id, invitation.secret.hex(), "shop", request_for(place.pending_key()))
    trusting = client._context(site.authority.certificate.decode())
    await client._ask(site.address, trusting, "POST", "/v1/enrol", IssuedAnswer, body)
    await enrol(invitation, "shop", place)
    assert [each.used for each in site.authority.index().tokens] == [1]
    assert await refused(invitation, "shop", site.place("other")) == "token-used"


@pytest.mark.parametrize("uses", [1, 40])
async def test_of_fifty_that_join_at_once_as_many_get_in_as_may(site: Site, uses: int) -> None:
    invitation = site.invitation(name="shop-*", uses=uses)

    async def join(number: int) -> str:
        try:
            await enrol(invitation, f"shop-{number}", site.place(f"shop-{number}"))
        except EnrolmentError as error:
            return error.reason
        return "joined"

    assert Counter(await asyncio.gather(*map(join, range(50)))) == {"joined": uses, "token-used": 50 - uses}
    assert sum("shop-" in each.identity for each in site.authority.entries()) == uses
    assert [each.used for each in site.authority.index().tokens] == [uses]


JOIN_MANY = """
import sys
from pathlib import Path
from drengine.identity.authority import LIVING_MAX, Authority
from drengine.identity.errors import EnrolmentError
from drengine.identity.keys import new_key
folder, id, secret, name = sys.argv[1:]
for number in range(10):
    try:
        Authority(Path(folder)).enrol(id, bytes.fromhex(secret), f"{name}-{number}", new_key().public_key(), seconds=60)
    except EnrolmentError as error:
        assert error.reason == "token-used"
    else:
        print("joined")
"""


def test_processes_that_answer_at_once_count_together(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", "main")
    token, secret = authority.create_token(Role.AGENT, "*", seconds=60, uses=7)
    words = [sys.executable, "-c", JOIN_MANY, str(tmp_path / "ca"), token.id, secret.hex()]
    running = [subprocess.Popen([*words, f"host-{n}"], stdout=subprocess.PIPE, text=True) for n in range(3)]
    printed = [line for process in running for line in process.communicate(timeout=60)[0].split()]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(printed) == len(authority.entries()) == 7


async def test_a_stranger_with_another_ca_is_not_told_the_secret(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bytes] = []
    read = http._read

    async def overheard(reader: asyncio.StreamReader, peer: str, server: bytes) -> http.Request:
        request = await read(reader, peer, server)
        heard.append(request.target.encode() + repr(request.headers).encode() + request.body)
        return request

    monkeypatch.setattr(http, "_read", overheard)
    async with serving(tmp_path / "stranger") as stranger:
        honest = site.invitation()
        lured = Invitation(stranger.address, honest.pin, honest.id, honest.secret)
        assert await refused(lured, "shop", site.place("shop")) == "pin-mismatch"
    assert len(heard) == 1 and b"/v1/ca" in heard[0]
    assert honest.secret.hex().encode() not in heard[0]
    assert site.authority.index().tokens[0].used == 0


async def test_whoever_forwards_the_ca_without_its_key_is_not_told_the_secret(site: Site, tmp_path: Path) -> None:
    """It answers with the true CA, which anybody may have, and its own certificate."""
    async with serving(tmp_path / "stranger") as stranger:
        honest = site.invitation()
        (tmp_path / "stranger/ca/ca.pem").write_bytes(site.authority.certificate)
        true = site.authority.certificate
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Authority, "certificate", property(lambda self: true))
            lured = Invitation(stranger.address, honest.pin, honest.id, honest.secret)
            with pytest.raises((TransportError, EnrolmentError)):
                await enrol(lured, "shop", site.place("shop"))
    assert not site.place("shop").is_enrolled


async def test_a_target_of_the_same_ca_is_no_authority(site: Site) -> None:
    target = await site.joined("outpost", Role.TARGET, hosts=("127.0.0.1",))
    context = server_context(TlsFiles(target.files.certificate, target.files.key, target.files.ca))
    context.verify_mode = ssl.CERT_NONE
    heard: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(65536))
        body = msgspec.json.encode({"ca": site.authority.certificate.decode()})
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    honest = site.invitation()
    lured = Invitation(Address("127.0.0.1", port), honest.pin, honest.id, honest.secret)
    assert await refused(lured, "shop", site.place("shop")) == "not-an-authority"
    assert not any(honest.secret.hex().encode() in each for each in heard)
    server.close()


def test_a_token_that_is_cut_short_or_changed_is_none(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", "main")
    made, secret = authority.create_token(Role.AGENT, "shop", seconds=60)
    whole = str(Invitation(Address("authority.example", 7444), authority.issuing.fingerprint, made.id, secret))
    assert Invitation.parse(f"  {whole}\n").secret == secret
    assert secret.hex() not in (tmp_path / "ca/index.json").read_text()
    changed = [whole[:at] + ("A" if whole[at] != "A" else "B") + whole[at + 1 :] for at in range(len(whole) - 1)]
    for text in [*(whole[:length] for length in range(len(whole))), *changed, whole + "A", whole * 9, "é" + whole]:
        with pytest.raises(EnrolmentError) as error:
            Invitation.parse(text)
        assert error.value.reason == "token-malformed"


def weak_keys() -> dict[str, object]:
    return {
        "rsa-1024": rsa.generate_private_key(65537, 1024),
        "p-521": ec.generate_private_key(ec.SECP521R1()),
        "dsa": dsa.generate_private_key(2048),
    }


async def test_requests_with_weak_or_other_keys_are_refused_and_use_nothing(site: Site) -> None:
    invitation = site.invitation(uses=9)
    trusting = client._context(site.authority.certificate.decode())

    async def ask(csr: str) -> IssuedAnswer:
        body = EnrolRequest(invitation.id, invitation.secret.hex(), "shop", csr)
        return await client._ask(site.address, trusting, "POST", "/v1/enrol", IssuedAnswer, body)

    def request(key: object, algorithm: hashes.HashAlgorithm | None) -> str:
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        built = builder.sign(key, algorithm)  # type: ignore[arg-type]
        return built.public_bytes(serialization.Encoding.PEM).decode()

    good = request_for(new_key())
    for csr in [
        "",
        "x",
        good[:-60],
        good.replace("\nMI", "\nNI"),
        *(request(k, hashes.SHA256()) for k in weak_keys().values()),
    ]:
        with pytest.raises(EnrolmentError) as error:
            await ask(csr)
        assert error.value.reason == "request-refused", csr
    assert site.authority.index().tokens[0].used == 0
    assert (await ask(request(ed25519.Ed25519PrivateKey.generate(), None))).certificate


async def test_proofs_that_are_none_are_refused_and_fill_no_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Each made a traceback in the authority's log, for whoever could reach it."""
    context = client._context(site.authority.certificate.decode())
    theirs = Authority.create(site.folder / "strangers", "main")
    issued = theirs.issue(Identity("main", Role.AGENT, "nobodyhere"), new_key().public_key()).certificate
    der = x509.load_pem_x509_certificate(issued).public_bytes(serialization.Encoding.DER)
    half = base64.b64encode(der.replace(b"nobodyhere", b"no\xff\xfedyhere"))
    for shown in (b"\xe9", b"AAAA", b"", b"=", base64.b64encode(der), half):
        reader, writer = await asyncio.open_connection(
            site.address.host, site.address.port, ssl=context, server_hostname=site.address.host
        )
        name = CERTIFICATE_HEADER.encode()
        writer.write(b"GET /v1/updates HTTP/1.1\r\nHost: x\r\n" + name + b": " + shown + b"\r\n\r\n")
        answer = await reader.read()
        writer.close()
        assert b"identity-revoked" in answer, (shown, answer)
    assert not [each for each in caplog.records if each.exc_info]


async def test_a_clock_that_is_wrong_is_told(tmp_path: Path) -> None:
    async with serving(tmp_path, clock=ManualClock(time.time_ns() + 86400 * 10**9)) as site:
        with pytest.raises(TransportError) as error:
            await enrol(site.invitation(), "shop", site.place("shop"))
        assert error.value.reason == "tls-peer-early"


async def test_a_folder_that_can_not_be_written_costs_no_use(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert await refused(site.invitation(), "shop", Place(tmp_path / "file/inside")) == "folder-unusable"
    assert site.authority.index().tokens[0].used == 0


async def test_an_authority_that_is_away_is_told_with_its_address(site: Site) -> None:
    gone = Invitation(Address("127.0.0.1", 1), bytes(32), "00" * 6, bytes(20))
    with pytest.raises(TransportError, match=r"127\.0\.0\.1:1"):
        await enrol(gone, "shop", site.place("shop"))


def matched(place: Place) -> int:
    """The serial number of the pair that lies there: key and certificate belong together."""
    certificate, key = place.pair()
    assert certificate.public_key() == key.public_key()  # type: ignore[attr-defined]
    check_files(place.files, Side.CLIENT, now=time.time())
    return certificate.serial_number


def test_a_kill_at_any_moment_leaves_the_old_pair_or_the_new(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", "main")
    ca, crl = authority.certificate.decode(), authority.write_crl().decode()
    identity, where = Identity("main", Role.AGENT, "shop"), Address("127.0.0.1", 1)

    def laid(folder: Path) -> tuple[Place, bytes, ec.EllipticCurvePrivateKey]:
        """A host that has a certificate, and its next one."""
        place = Place(folder)
        place.make()
        place.believe(ca, crl)
        place.take(authority.issue(identity, place.pending_key().public_key()).certificate, place.pending_key(), where)
        key = place.pending_key()
        return place, authority.issue(identity, key.public_key()).certificate, key

    serials = set()
    for call in range(400):
        place, certificate, key = laid(tmp_path / f"host-{call}")
        old, new = matched(place), x509.load_pem_x509_certificate(certificate).serial_number
        goes_on = killed_before(call, lambda: place.take(certificate, key, where))  # noqa: B023
        assert matched(place) in (old, new)
        serials.add(matched(place) == new)
        place.take(certificate, key, where)
        assert matched(place) == new
        if not goes_on:
            break
    assert serials == {True, False} and call > 15


def test_a_pair_that_was_laid_there_as_two_files_is_taken_over(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", "main")
    identity, key, place = Identity("main", Role.AGENT, "shop"), new_key(), Place(tmp_path / "shop")
    place.folder.mkdir()
    plain = authority.issue(identity, key.public_key())
    (place.folder / "certificate.pem").write_bytes(plain.certificate)
    (place.folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    place.believe(authority.certificate.decode(), authority.write_crl().decode())
    assert matched(place) == int(plain.entry.serial, 16)
    fresh = place.pending_key()
    issued = authority.issue(identity, fresh.public_key())
    place.take(issued.certificate, fresh, Address("127.0.0.1", 1))
    assert matched(place) == int(issued.entry.serial, 16)


async def test_guesses_are_slow_and_counted(tmp_path: Path) -> None:
    clock = ManualClock(time.time_ns())
    async with serving(tmp_path, clock=clock) as site:
        wrong = Invitation(site.address, site.authority.issuing.fingerprint, "00" * 6, bytes(20))
        guessing = [asyncio.create_task(refused(wrong, "shop", site.place(f"{n}"))) for n in range(5)]
        await asyncio.sleep(0.5)
        assert not any(each.done() for each in guessing)
        while not all(each.done() for each in guessing):
            clock.advance(1.0)
            await asyncio.sleep(0.01)
        assert {await each for each in guessing} == {"token-unknown"}


async def test_strangers_keep_nobody_out(site: Site) -> None:
    """Silent connections of one address, more than there may be, and what is no request."""
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as crowd:
        for number in range(http.STRANGERS_MAX + 20):
            silent = crowd.enter_context(socket.socket())
            silent.setblocking(False)
            silent.bind(("127.0.0.2", 0))
            await loop.sock_connect(silent, (site.address.host, site.address.port))
            if number % 3 == 0:
                await loop.sock_sendall(silent, b"GET / HTTP/1.1\r\n\r\n")
        await site.joined("shop")
        await asyncio.gather(*(site.joined(f"shop-{n}") for n in range(10)))


@pytest.mark.parametrize(
    "said",
    [
        b"POST /v1/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 100000,
        b"GET /" + b"x" * 100000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20000,
        b"\0" * 70000,
        b"POST /v1/enrol HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 40000,
    ],
    ids=["body", "target", "headers", "nonsense", "chunks"],
)
async def test_what_is_too_large_is_not_read_to_its_end(site: Site, said: bytes) -> None:
    trusting = client._context(site.authority.certificate.decode())
    reader, writer = await asyncio.open_connection(site.address.host, site.address.port, ssl=trusting)
    with contextlib.suppress(ConnectionError):
        writer.write(said)
        await writer.drain()
        assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.transport.abort()
    await site.joined("shop")


async def test_who_joined_who_renewed_and_who_was_refused_is_in_the_audit_log(tmp_path: Path) -> None:
    async with serving(tmp_path) as site:
        invitation = site.invitation()
        shop = site.place("shop")
        await enrol(invitation, "shop", shop)
        await renew(shop, clock=SystemClock())
        assert await refused(invitation, "mill", site.place("mill")) == "token-used"
    told = [each.entry for each in read_entries(tmp_path / "ca/audit")]
    assert [(each.who, each.did, each.on, each.outcome) for each in told if each.did in ("enrol", "renew")] == [
        (f"invitation:{invitation.id}", "enrol", "drengine://main/agent/shop", Outcome.DONE),
        ("drengine://main/agent/shop", "renew", "drengine://main/agent/shop", Outcome.DONE),
        ("address:127.0.0.1", "enrol", "", Outcome.REFUSED),
    ]
    written = b"".join(path.read_bytes() for path in (tmp_path / "ca").rglob("*") if path.is_file())
    assert invitation.secret not in written and invitation.secret.hex().encode() not in written
