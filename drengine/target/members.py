"""Which sources belong to the site as it decided: who was retired is turned away, forgotten by metrics, and ages.

The decision is in the store's directory (`drengine.policy`), where any process may change it, so it is looked at again
and again. A source that joined again (it shows a certificate that is none of those that were revoked) is taken back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from drengine.model.clock import Clock
from drengine.model.errors import DrengineError
from drengine.policy.errors import SOURCE_RETIRED
from drengine.policy.kept import Policy, PolicyFile
from drengine.policy.settings import decided
from drengine.store.care.retention import RetentionPolicy
from drengine.store.care.retire import Keeping
from drengine.store.store import Store
from drengine.target.sources import Sources
from drengine.transport.x509 import parse_certificate

log = logging.getLogger("drengine.target")

LOOK_SECONDS = 1.0
AGED_SECONDS = 600.0
"""How often it is written down for how long sources are retired."""


@dataclass
class Members:
    """Of one store.

    Attributes:
        retention: where nothing else was decided.
        end: ends the sessions of a source, for a reason.
        returned: told who joined again.
    """

    file: PolicyFile
    store: Store
    sources: Sources
    clock: Clock
    retention: RetentionPolicy
    end: Callable[[str, DrengineError], None]
    returned: Callable[[str], None]
    _gone: frozenset[str] = frozenset()
    _trouble: str = ""
    _looked_at: float = 0.0
    _aged: dict[str, float] = field(default_factory=dict)
    """Seconds by which retired sources are older than is written down."""

    def require(self, source: str, certificate: bytes | None) -> None:
        """Let a source in, unless it was retired. Blocks; call it on a thread.

        Args:
            source: its name.
            certificate: that its agent has proved (DER); None without TLS.

        Raises:
            DrengineError: SOURCE_RETIRED.
        """
        if not self._is_retired(source):
            return
        with self.file.changing() as policy:
            retired = policy.retired.get(source)
            if retired is None:
                return
            serial = f"{parse_certificate(certificate).serial:016x}" if certificate else ""
            if not retired.serials or not serial or serial in retired.serials:
                raise DrengineError(SOURCE_RETIRED, f"{source!r} was retired by {retired.by}")
            others = {name: each for name, each in policy.retired.items() if name != source}
            self.file.keep(msgspec.structs.replace(policy, retired=others))
        self.sources.take_up(self.store, source)
        log.info("a source that was retired has joined again", extra={"source": source, "serial": serial})
        self.returned(source)

    def _is_retired(self, source: str) -> bool:
        """As was decided; while that can't be read, as was known before: replication does not stop for it."""
        try:
            return source in self.file.read().retired
        except DrengineError as error:
            if source in self._gone:
                raise DrengineError(SOURCE_RETIRED, f"{source!r} was retired") from error
            return False

    def keeping(self, source: str) -> Keeping:
        """How long the source's points are kept.

        Raises:
            DrengineError: POLICY_UNUSABLE: then nothing may be thinned by a policy that is not theirs.
        """
        policy = self.file.read()
        retired = policy.retired.get(source)
        found = decided(policy.rules, source).get("retention")
        silent_seconds = None if retired is None else retired.aged_seconds + self._aged.get(source, 0.0)
        return Keeping(RetentionPolicy.parse(found.value) if found else self.retention, silent_seconds)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                self._take(await asyncio.to_thread(self._read))
                self._trouble = ""
            except DrengineError as error:
                self._note(error)
            await self.clock.sleep(LOOK_SECONDS)

    def load(self) -> None:
        """Take up what was decided before the target started, as far as it can be read."""
        try:
            self._take(self.file.read())
        except DrengineError as error:
            self._note(error)

    def _note(self, error: DrengineError) -> None:
        """One line for each trouble, not one a second."""
        if error.message != self._trouble:
            self._trouble = error.message
            log.error("%s; %s", error.message, error.hint)

    def _take(self, policy: Policy) -> None:
        gone = frozenset(policy.retired)
        for source in gone - self._gone:
            self.end(source, DrengineError(SOURCE_RETIRED, f"{source!r} was retired by {policy.retired[source].by}"))
            self.sources.forget(source)
        for source in self._gone - gone:
            self.sources.take_up(self.store, source)
        self._gone = gone

    def _read(self) -> Policy:
        """What is decided; who is retired since the last look or longer is older by the time since then."""
        policy = self.file.read()
        now, before = self.clock.monotonic(), self._looked_at
        self._looked_at = now
        passed = now - before if before else 0.0
        self._aged = {name: self._aged[name] + passed if name in self._aged else 0.0 for name in policy.retired}
        if max(self._aged.values(), default=0.0) < AGED_SECONDS:
            return policy
        with self.file.changing() as policy:
            older = {
                name: msgspec.structs.replace(each, aged_seconds=each.aged_seconds + self._aged.get(name, 0.0))
                for name, each in policy.retired.items()
            }
            self.file.keep(msgspec.structs.replace(policy, retired=older))
            self._aged = dict.fromkeys(older, 0.0)
        return self.file.read()
