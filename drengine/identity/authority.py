"""A certificate authority in a directory: it signs what says who a party is, and remembers it.

| file | holds | written |
|---|---|---|
| `index.json` | certificates, tokens, which CAs there are (`index.py`) | before a certificate is handed out |
| `ca.key`, `ca-N.key` | a CA's key with its certificate, so that they don't part; 0600 | before the index names it |
| `ca.pem` | the certificates of all CAs that are trusted, for the parties | when the index says otherwise |
| `crl.pem` | the newest CRL of each | after the index that says who is revoked |

Each is replaced whole and durably. A lock on the directory lets one process change it at a time. A crash leaves the
state before or after a change: at worst the index knows a certificate that nobody got, or `crl.pem` is older than the
index, until the same command is given again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from drengine.durable import replace_durably
from drengine.identity.errors import CA_REFUSED, CA_UNUSABLE, EnrolmentError
from drengine.identity.index import FIRST_KEY_FILE, INDEX_FILE, VERSION, Entry, Index, read_index, write_index
from drengine.identity.names import COMMANDER, Identity, Role
from drengine.identity.signing import SERVERS, SKEW_SECONDS, SigningCa, checked_host, key_digest, new_ca
from drengine.identity.tokens import Token, digest_of, new_secret
from drengine.model.clock import Clock, SystemClock
from drengine.model.errors import DrengineError
from drengine.model.names import check_name
from drengine.ownership import make_directory

DAY_SECONDS = 86400
CA_SECONDS = 3650 * DAY_SECONDS
CERTIFICATE_SECONDS = 30 * DAY_SECONDS
CRL_SECONDS = 365 * DAY_SECONDS
"""Long, because an expired CRL refuses everybody: it tells who is revoked, not that the CA lives."""
FORGOTTEN_SECONDS = 90 * DAY_SECONDS
"""So long after its end a certificate or a token leaves the index."""
CERTIFICATE_FILE, CRL_FILE = "ca.pem", "crl.pem"
LIVING_MAX = 64
"""Certificates of one identity that are valid and that its host asked for: each is a line of the index."""
_CAS_MAX = 2
"""One replaces another; a third begins when that is through."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A new certificate, in PEM, and how the index remembers it."""

    entry: Entry
    certificate: bytes


@dataclass(frozen=True, slots=True)
class Wanted:
    """Who gets a certificate, and what for."""

    identity: Identity
    key: CertificatePublicKeyTypes
    hosts: tuple[str, ...]
    both_ways: bool
    seconds: float
    token: str = ""


class Authority:
    """A CA that exists. Processes may use one directory at the same time.

    Attributes:
        folder: its directory.
    """

    def __init__(self, folder: Path, *, passphrase: bytes | None = None, clock: Clock | None = None) -> None:
        """Open it; the key is read only when something is signed.

        Raises:
            DrengineError: CA_UNUSABLE.
        """
        self.folder = folder
        self._passphrase = passphrase
        self._clock = clock or SystemClock()
        self._read: dict[str, SigningCa] = {}
        if not (folder / INDEX_FILE).exists():
            self._ca(FIRST_KEY_FILE)  # which says what is missing
        else:
            self._ca(read_index(folder).issuing)

    @staticmethod
    def create(
        folder: Path,
        site: str,
        *,
        passphrase: bytes | None = None,
        seconds: float = CA_SECONDS,
        clock: Clock | None = None,
    ) -> Authority:
        """Make a CA for a site in a missing or empty directory, or where that was interrupted.

        Raises:
            DrengineError: BAD_NAME, CA_REFUSED, CA_UNUSABLE.
        """
        check_name(site, what="site")
        clock = clock or SystemClock()
        try:
            make_directory(folder, mode=0o700)
            with _locked(folder):
                present = {each.name.removesuffix(".new") for each in folder.iterdir()}
                if FIRST_KEY_FILE in {each.name for each in folder.iterdir()}:
                    raise DrengineError(CA_REFUSED, f"{folder} holds a CA already")
                if strange := present - {INDEX_FILE, FIRST_KEY_FILE}:
                    raise DrengineError(CA_REFUSED, f"{folder} is not empty: it holds {min(strange)}")
                content = new_ca(site, clock.now_ns() // 10**9, seconds, passphrase)
                write_index(folder, Index(VERSION, site, 0, ()))
                replace_durably(folder / FIRST_KEY_FILE, content, mode=0o600)
                public = SigningCa.parse(folder / FIRST_KEY_FILE, content).public
                replace_durably(folder / CERTIFICATE_FILE, public, mode=0o644)
        except OSError as error:
            raise _failed(folder, error) from error
        return Authority(folder, passphrase=passphrase, clock=clock)

    # ---- what there is ---------------------------------------------------------------------------------------

    @property
    def certificate(self) -> bytes:
        """What parties trust, in PEM: the CA that issues first, and one that it replaces or that will replace it.

        Raises:
            DrengineError: CA_UNUSABLE.
        """
        return self._bundle(read_index(self.folder))

    @property
    def issuing(self) -> SigningCa:
        """The CA that signs certificates now.

        Raises:
            DrengineError: CA_UNUSABLE.
        """
        return self._ca(read_index(self.folder).issuing)

    @property
    def ends_at(self) -> float:
        """Seconds since 1970 at which the certificate of the CA that issues expires."""
        return self.issuing.ends_at

    @property
    def site(self) -> str:
        """For which it issues.

        Raises:
            DrengineError: CA_UNUSABLE.
        """
        return read_index(self.folder).site

    def index(self) -> Index:
        """All that it remembers.

        Raises:
            DrengineError: CA_UNUSABLE.
        """
        return read_index(self.folder)

    def entries(self) -> tuple[Entry, ...]:
        """What was issued, oldest first; what expired long ago is forgotten.

        Raises:
            DrengineError: CA_UNUSABLE.
        """
        return read_index(self.folder).entries

    # ---- certificates ----------------------------------------------------------------------------------------

    def issue(
        self,
        identity: Identity,
        key: CertificatePublicKeyTypes,
        *,
        hosts: Sequence[str] = (),
        both_ways: bool = False,
        seconds: float = CERTIFICATE_SECONDS,
    ) -> Issued:
        """Sign a certificate that says who holds this key. It is in the index before anybody has it.

        Args:
            identity: of the CA's site.
            key: the party's.
            hosts: DNS names and IP addresses under which clients reach it; a server's needs one.
            both_ways: also for the side of a connection that its role does not imply.
            seconds: how long it is valid; never longer than the CA.

        Raises:
            DrengineError: CA_REFUSED, CA_UNUSABLE.
        """
        wanted = Wanted(identity, key, _checked(identity.role, hosts), both_ways, seconds)
        with self._changing() as index:
            return self._issue(index, wanted)

    def renew(
        self,
        identity: Identity,
        key: CertificatePublicKeyTypes,
        *,
        serial: str | None = None,
        seconds: float = CERTIFICATE_SECONDS,
    ) -> Issued:
        """Issue again what the identity has, to this key. The old certificate stays valid until it expires.

        Args:
            identity: whose.
            key: the new one.
            serial: of the certificate that was shown by whoever asks; None: an operator asks.
            seconds: how long the new one is valid.

        Raises:
            DrengineError: CA_REFUSED: it has none, or its newest is revoked. CA_UNUSABLE.
            EnrolmentError: the certificate that was shown is revoked, or not one of this identity.
        """
        with self._changing() as index:
            known = [each for each in index.entries if each.identity == str(identity)]
            if serial is not None and serial not in {each.serial for each in known if each.revoked_at is None}:
                raise EnrolmentError("identity-revoked", f"{identity}, serial {serial}")
            if not known:
                raise DrengineError(CA_REFUSED, f"{identity} has no certificate of this CA that could be renewed")
            newest = known[-1]
            if serial is not None:
                _require_moderation(known, self._now())
            if newest.revoked_at is not None:
                raise DrengineError(CA_REFUSED, f"the newest certificate of {identity} is revoked: issue a new one")
            wanted = Wanted(identity, key, newest.hosts, newest.both_ways, seconds, newest.token)
            return self._issue(index, wanted)

    def revoke(self, *, identity: Identity | None = None, serial: str | None = None) -> tuple[Entry, ...]:
        """Revoke a certificate, or all unexpired ones of an identity, and write the CRL; again does no harm.

        Returns:
            what is revoked now.

        Raises:
            DrengineError: CA_REFUSED: there is none. CA_UNUSABLE.
        """
        now = self._now()
        with self._changing() as index:

            def is_meant(entry: Entry) -> bool:
                return entry.serial == serial if serial else entry.identity == str(identity) and now < entry.ends_at

            if not any(map(is_meant, index.entries)):
                raise DrengineError(CA_REFUSED, f"no certificate of {serial or identity} is known that is still valid")
            after = _revoked(index, is_meant, now)
            self._write_crl(after, CRL_SECONDS)
            return tuple(filter(is_meant, after.entries))

    def write_crl(self, *, seconds: float = CRL_SECONDS) -> bytes:
        """Sign a CRL of what is revoked and has not expired, to be followed by another within so many seconds.

        Raises:
            DrengineError: CA_UNUSABLE.
        """
        with self._changing() as index:
            return self._write_crl(index, seconds)

    # ---- tokens ----------------------------------------------------------------------------------------------

    def create_token(
        self,
        role: Role,
        name: str,
        *,
        seconds: float,
        uses: int = 1,
        hosts: Sequence[str] = (),
        both_ways: bool = False,
        replace: bool = False,
    ) -> tuple[Token, bytes]:
        """A token that lets hosts join, and its secret, which is kept nowhere.

        Raises:
            DrengineError: CA_REFUSED, CA_UNUSABLE.
        """
        if role is Role.AUTHORITY:
            raise DrengineError(CA_REFUSED, "no token makes an authority: `drengine ca serve` has its own certificate")
        id_, secret = new_secret()
        now = self._now()
        token = Token(
            id_,
            digest_of(secret),
            role,
            name,
            _checked(role, hosts),
            both_ways,
            now,
            now + max(1, int(seconds)),
            max(1, uses),
            replace=replace,
        )
        with self._changing() as index:
            kept = tuple(each for each in index.tokens if now < each.ends_at + FORGOTTEN_SECONDS)
            write_index(self.folder, msgspec.structs.replace(index, tokens=(*kept, token)))
        return token, secret

    def revoke_token(self, id_: str) -> Token:
        """From now on nobody joins with it; who has, keeps the certificate.

        Raises:
            DrengineError: CA_REFUSED: it is not known. CA_UNUSABLE.
        """
        with self._changing() as index:
            found = next((each for each in index.tokens if each.id == id_), None)
            if found is None:
                raise DrengineError(CA_REFUSED, f"there is no token {id_[:40]}")
            ended = found if found.revoked_at is not None else msgspec.structs.replace(found, revoked_at=self._now())
            write_index(self.folder, _with_token(index, ended))
            return ended

    def enrol(self, id_: str, secret: bytes, name: str, key: CertificatePublicKeyTypes, *, seconds: float) -> Issued:
        """Give whoever has a token a certificate of this name; the use is counted with it, or neither.

        Who asks again with the same token and key has not got the answer: it gets another certificate without a use.

        Raises:
            EnrolmentError: with the reason.
            DrengineError: CA_REFUSED, CA_UNUSABLE.
        """
        with self._changing() as index:
            now = self._now()
            token = next((each for each in index.tokens if each.id == id_), None)
            if token is None or not token.is_opened_by(secret):
                raise EnrolmentError("token-unknown")
            try:
                identity = Identity(index.site, token.role, name)
            except DrengineError as error:
                raise EnrolmentError("token-name", error.message) from error
            known = [each for each in index.entries if each.identity == str(identity)]
            living = [each for each in known if each.state(now) == "valid"]
            is_repeated = any(each.token == token.id and each.key == key_digest(key) for each in living)
            _require_admission(token, name, now, is_repeated=is_repeated)
            if known and _is_put_out(known[-1], token):
                raise EnrolmentError("identity-revoked", f"{identity}, since token {token.id} was made")
            if living and not is_repeated and not token.replace:
                raise EnrolmentError("identity-taken", str(identity))
            if namesake := _namesake(index, identity, token.both_ways, now):
                raise EnrolmentError("identity-taken", f"{namesake}, which the broker could not tell from {identity}")
            wanted = Wanted(identity, key, token.hosts, token.both_ways, seconds, token.id)
            if is_repeated:
                _require_moderation(living, now)
                return self._issue(index, wanted)
            counted = _with_token(index, msgspec.structs.replace(token, used=token.used + 1))
            if not living:
                return self._issue(counted, wanted)
            serials = {each.serial for each in living}
            issued = self._issue(_revoked(counted, lambda each: each.serial in serials, now), wanted)
            self._write_crl(read_index(self.folder), CRL_SECONDS)
            return issued

    # ---- one CA replaces another -----------------------------------------------------------------------------

    def begin_rollover(self, *, seconds: float = CA_SECONDS) -> SigningCa:
        """Make the next CA. Parties trust it beside the one that still issues.

        Raises:
            DrengineError: CA_REFUSED: one has begun. CA_UNUSABLE.
        """
        with self._changing() as index:
            if len(index.trusted) >= _CAS_MAX:
                raise DrengineError(CA_REFUSED, "there are two CAs already: one replaces the other")
            file = _next_file(index)
            replace_durably(self.folder / file, new_ca(index.site, self._now(), seconds, self._passphrase), mode=0o600)
            self._read.pop(file, None)
            self._write_crl(msgspec.structs.replace(index, trusted=(*index.trusted, file)), CRL_SECONDS)
            return self._ca(file)

    def switch(self) -> SigningCa:
        """From now on the next CA signs certificates; those of the other stay valid.

        Raises:
            DrengineError: CA_REFUSED: there is no next one. CA_UNUSABLE.
        """
        with self._changing() as index:
            following = [each for each in index.trusted if _number(each) > _number(index.issuing)]
            if not following:
                raise DrengineError(CA_REFUSED, "there is no CA that could take over")
            after = msgspec.structs.replace(index, issuing=following[-1])
            write_index(self.folder, after)
            self._publish(after)
            return self._ca(after.issuing)

    def retire(self) -> None:
        """Only the CA that issues is trusted from now on; the other's key is removed.

        Raises:
            DrengineError: CA_UNUSABLE.
        """
        with self._changing() as index:
            old = [each for each in index.trusted if each != index.issuing]
            self._write_crl(msgspec.structs.replace(index, trusted=(index.issuing,)), CRL_SECONDS)
            for file in old:
                (self.folder / file).unlink(missing_ok=True)
                self._read.pop(file, None)

    # ---- inside ----------------------------------------------------------------------------------------------

    def _issue(self, index: Index, wanted: Wanted) -> Issued:
        if wanted.identity.site != index.site:
            raise DrengineError(CA_REFUSED, f"this CA is of the site {index.site}, not of {wanted.identity.site}")
        if wanted.identity.name == COMMANDER and wanted.identity.role is not Role.ORCHESTRATOR:
            raise DrengineError(CA_REFUSED, f"the name {COMMANDER!r} is reserved: a broker would let it command")
        ca = self._ca(index.issuing)
        now, ends = self._now(), int(ca.ends_at)
        if ends <= now:
            raise DrengineError(CA_REFUSED, "the CA itself has expired: make a new one")
        taken = {each.serial for each in index.entries}
        while (serial := f"{secrets.randbits(63) | 1 << 62:016x}") in taken:
            pass
        entry = Entry(
            serial,
            str(wanted.identity),
            wanted.hosts,
            wanted.both_ways,
            now - SKEW_SECONDS,
            min(now + max(1, int(wanted.seconds)), ends),
            issuer=index.issuing,
            key=key_digest(wanted.key),
            token=wanted.token,
        )
        signed = ca.sign(entry, wanted.identity, wanted.key, self._passphrase)
        kept = tuple(each for each in index.entries if now < each.ends_at + FORGOTTEN_SECONDS)
        write_index(self.folder, msgspec.structs.replace(index, entries=(*kept, entry)))
        return Issued(entry, signed)

    def _write_crl(self, index: Index, seconds: float) -> bytes:
        """Serials of one CA on the other's list do no harm: no two certificates of a directory share one."""
        now = self._now()
        index = msgspec.structs.replace(index, crl_number=index.crl_number + 1)
        revoked = [each for each in index.entries if each.revoked_at is not None and now < each.ends_at]
        period = (now - SKEW_SECONDS, now + max(1, int(seconds)))
        content = b"".join(
            self._ca(file).sign_revocations(revoked, index.crl_number, period, self._passphrase)
            for file in index.trusted
        )
        write_index(self.folder, index)
        replace_durably(self.folder / CRL_FILE, content, mode=0o644)
        self._publish(index)
        return content

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Index]:
        """The index, while nobody else changes it."""
        try:
            with _locked(self.folder):
                index = read_index(self.folder)
                self._publish(index)
                yield index
        except OSError as error:
            raise _failed(self.folder, error) from error

    def _publish(self, index: Index) -> None:
        """Bring `ca.pem` to what the index says."""
        path, bundle = self.folder / CERTIFICATE_FILE, self._bundle(index)
        if not path.exists() or path.read_bytes() != bundle:
            replace_durably(path, bundle, mode=0o644)

    def _bundle(self, index: Index) -> bytes:
        others = [each for each in index.trusted if each != index.issuing]
        return b"".join(self._ca(file).public for file in (index.issuing, *others))

    def _ca(self, file: str) -> SigningCa:
        if file not in self._read:
            self._read[file] = SigningCa.parse(self.folder / file, _read_private(self.folder / file))
        return self._read[file]

    def _now(self) -> int:
        return self._clock.now_ns() // 10**9


def _checked(role: Role, hosts: Sequence[str]) -> tuple[str, ...]:
    checked = tuple(checked_host(host) for host in hosts)
    if role in SERVERS and not checked:
        raise DrengineError(CA_REFUSED, f"{role} needs the names or addresses that its clients connect to")
    return checked


def _require_admission(token: Token, name: str, now: float, *, is_repeated: bool) -> None:
    state = token.state(now)
    if state != "valid" and not (is_repeated and state == "used"):
        raise EnrolmentError(f"token-{state}", f"token {token.id}")
    if not token.admits(name):
        raise EnrolmentError("token-name", f"{name!r} is not of the form {token.name!r}")


def _namesake(index: Index, identity: Identity, both_ways: bool, now: float) -> str:
    """Who of another role has this name, where both connect as clients; empty when there is nobody."""
    if identity.role in SERVERS and not both_ways:
        return ""
    for each in index.entries:
        other = Identity.parse(each.identity)
        connects = other.role not in SERVERS or each.both_ways
        if connects and other.name == identity.name and other.role is not identity.role and each.state(now) == "valid":
            return each.identity
    return ""


def _is_put_out(newest: Entry, token: Token) -> bool:
    """Whether an identity was revoked since a token was made: whoever was put out may still have the token."""
    if newest.revoked_at is None:
        return False
    return newest.token == token.id or newest.revoked_at > token.begins_at


def _require_moderation(entries: Iterable[Entry], now: int) -> None:
    """A host that was taken over asks without end, and each certificate makes the index longer for all."""
    if sum(each.state(now) == "valid" for each in entries) >= LIVING_MAX:
        raise EnrolmentError("request-refused", f"it has {LIVING_MAX} certificates that are valid")


def _revoked(index: Index, is_meant: Callable[[Entry], bool], now: int) -> Index:
    entries = tuple(
        msgspec.structs.replace(each, revoked_at=now) if is_meant(each) and each.revoked_at is None else each
        for each in index.entries
    )
    return msgspec.structs.replace(index, entries=entries)


def _with_token(index: Index, token: Token) -> Index:
    tokens = tuple(token if each.id == token.id else each for each in index.tokens)
    return msgspec.structs.replace(index, tokens=tokens)


def _next_file(index: Index) -> str:
    """A name that sorts behind those in use: `ca.key`, `ca-2.key`, `ca-3.key`..."""
    newest = max(_number(each) for each in index.trusted)
    return f"ca-{newest + 1}.key"


def _number(file: str) -> int:
    return 1 if file == FIRST_KEY_FILE else int(file.removeprefix("ca-").removesuffix(".key"))


def _read_private(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            content = file.read()
    except FileNotFoundError as error:
        raise DrengineError(CA_UNUSABLE, f"{path} is not there: `drengine ca init` makes a CA") from error
    except OSError as error:
        raise _failed(path, error) from error
    if mode & 0o077:
        raise DrengineError(CA_UNUSABLE, f"{path} may be read or written by others (mode {mode:03o}): chmod 600 it")
    return content


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _failed(path: Path, error: OSError) -> DrengineError:
    return DrengineError(CA_UNUSABLE, f"{error.filename or path}: {error.strerror or error}")
