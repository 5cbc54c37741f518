"""Keeps a party's certificate fresh, and tells its program at once who was revoked.

A certificate is renewed when two thirds of its life are over, a little earlier or later for each party, so that a site
does not ask all at once. While the authority is away the certificate and the list that are there go on; it is asked
again and again, and two metrics tell for how long.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from drengine.enrolment.client import renew, updates
from drengine.enrolment.messages import Updates
from drengine.enrolment.place import Place
from drengine.identity.errors import EnrolmentError
from drengine.identity.verify import NotBelievedError, Trust
from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.transport.files import TlsFiles

log = logging.getLogger("drengine.enrolment")

RENEW_AT = 2 / 3
JITTER = 1 / 20
"""Of a life, at most, earlier than RENEW_AT."""
LOOK_SECONDS = 60.0
LOOKS_PER_LIFE = 60
BACKOFF_SECONDS_MIN, BACKOFF_SECONDS_MAX = 1.0, 60.0
"""Between two attempts to follow the authority, doubled each time. Renewals: the same, up to LOOK_SECONDS."""


class Keeper:
    """Of one folder, for one event loop.

    Attributes:
        place: the folder.
        failure: why the last attempt to renew or to follow did not succeed; empty when it did.
    """

    def __init__(self, place: Place, clock: Clock, changed: Callable[[], object] = lambda: None) -> None:
        """`changed` is called in the loop whenever the files are others than before."""
        self.place = place
        self.failure = ""
        self._clock = clock
        self._changed = changed
        self._heard_at = clock.monotonic()

    async def run(self) -> None:
        """Renew and follow, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_again(self._keep_fresh, self._clock))
            tasks.create_task(_again(self._follow, self._clock))

    @property
    def silent_seconds(self) -> float:
        """Since the authority last said who is revoked, or since the start."""
        return self._clock.monotonic() - self._heard_at

    @property
    def overdue_seconds(self) -> float:
        """For how long the certificate should have been renewed; 0 while it needs not."""
        try:
            return max(0.0, self._now() - _due_at(self.place.certificate()))
        except EnrolmentError:
            return 0.0

    async def _keep_fresh(self) -> None:
        failures = 0
        while True:
            try:
                await self._renew_if_due()
            except DrengineError as error:
                failures += 1
                self._note(f"the certificate in {self.place.folder} is not renewed", error, failures)
            else:
                failures = 0
            await self._clock.sleep(self._pause(failures))

    async def _renew_if_due(self) -> None:
        certificate = self.place.certificate()
        if self._now() < _due_at(certificate):
            return
        await renew(self.place, clock=self._clock)
        self.failure = ""
        until = self.place.certificate().not_valid_after_utc
        log.info("the certificate in %s was renewed, valid until %s", self.place.folder, f"{until:%Y-%m-%dT%H:%M:%SZ}")
        self._changed()

    def _pause(self, failures: int) -> float:
        if failures:
            return min(LOOK_SECONDS, BACKOFF_SECONDS_MIN * 2.0 ** min(failures, 8))
        try:
            certificate = self.place.certificate()
        except EnrolmentError:
            return LOOK_SECONDS
        return min(LOOK_SECONDS, _life_seconds(certificate) / LOOKS_PER_LIFE)

    async def _follow(self) -> None:
        failures = 0
        while True:
            asked_at = self._clock.monotonic()
            try:
                news = await updates(self.place)
                self._heard_at = self._clock.monotonic()
                if news.version != self.place.version:
                    await self._take(news)
                elif self._heard_at - asked_at < BACKOFF_SECONDS_MIN:  # it should have kept us waiting
                    await self._clock.sleep(BACKOFF_SECONDS_MIN)
            except DrengineError as error:
                failures += 1
                self._note("the authority can't be followed; the CRL that is there goes on", error, failures)
                await self._clock.sleep(min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2.0 ** min(failures - 1, 8)))
            else:
                failures = 0

    async def _take(self, news: Updates) -> None:
        """Believe what the authority says now, unless it would have us distrust ourselves or forget who was revoked.

        Raises:
            EnrolmentError: answer-malformed, folder-unusable.
        """
        try:
            trust = Trust.read(news.ca.encode(), news.crl.encode())
            pair, _ = self.place.pair()
            trust.believe(pair.public_bytes(serialization.Encoding.DER), now=self._now(), purpose=None)
            before = Trust.read(self.place.authorities().encode(), self.place.revocations().encode())
        except NotBelievedError as error:
            if error.code not in ("tls-peer-expired", "tls-peer-revoked"):  # which say nothing about the news
                raise EnrolmentError("answer-malformed", str(error)) from error
            before = Trust((), ())
        for new in trust.revocations or ():
            for old in before.revocations or ():
                if old.issuer == new.issuer and _number(new) < _number(old):
                    raise EnrolmentError("answer-malformed", "its CRL is older than the one that we have")
        async with self.place.changing():
            self.place.believe(news.ca, news.crl)
        log.info("the authority has new CAs or revocations, taken up in %s", self.place.folder)
        self._changed()

    def _note(self, what: str, error: DrengineError, failures: int) -> None:
        self.failure = error.message
        if failures == 1:
            log.warning("%s: %s; %s", what, error, error.hint)

    def _now(self) -> float:
        return self._clock.now_ns() / 1e9


@contextlib.asynccontextmanager
async def keeping(
    files: Iterable[TlsFiles | None], clock: Clock, changed: Callable[[], object] = lambda: None
) -> AsyncIterator[tuple[Keeper, ...]]:
    """Within this context, one for each folder that an authority is asked for; none for certificates of people."""
    folders = dict.fromkeys(each.place for each in files if each is not None)
    keepers = tuple(Keeper(Place(folder), clock, changed) for folder in folders if folder is not None)
    tasks = [asyncio.create_task(each.run()) for each in keepers]
    try:
        yield keepers
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _again(work: Callable[[], Awaitable[None]], clock: Clock) -> None:
    """Nothing unforeseen ends it: a certificate that nobody renews ends everything."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("keeping the certificate failed unexpectedly")
            await clock.sleep(LOOK_SECONDS)


def _due_at(certificate: x509.Certificate) -> float:
    """Seconds since 1970 at which it is to be renewed."""
    der = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    share = RENEW_AT - JITTER * sha256(der).digest()[0] / 255
    return certificate.not_valid_before_utc.timestamp() + _life_seconds(certificate) * share


def _life_seconds(certificate: x509.Certificate) -> float:
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return life.total_seconds()


def _number(revocations: x509.CertificateRevocationList) -> int:
    try:
        return revocations.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0
