"""Alerts about certificates: an authority that is away while they grow old, and files that can't be used."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from demo.story import free_port
from tests.field.ground import DRENGINE, Ground
from tests.field.trial import trial
from tests.field.trials.daemons import faked_clock
from tests.monitoring.rig import Watched

AGO = "-25d"
"""Of 30 days, which a certificate lasts: it should have been renewed, and a quarter is not left."""
FILES = {"certificate": "certificate.pem", "key": "key.pem", "ca": "ca.pem"}
SILENT_SECONDS = 90.0
RENEWED_SECONDS = 120.0
"""An authority that was away for long is asked each minute."""
RINGS = frozenset(
    {
        "DrengineAuthoritySilent",
        "DrengineCertificateExpires",
        "DrengineCertificateRejected",
        "DrengineRenewalFails",
    }
)
"""What rings and ends here."""


@trial(seconds_max=420)
def alerts_of_certificates_ring_and_end(ground: Ground) -> None:
    """Hosts that enrolled 25 days ago, and an authority that is away: three alerts ring, and end when it is back."""
    ground.needs("prometheus")
    authority = _Authority(ground, free_port())
    prefix = faked_clock(AGO)
    process = authority.start(prefix)
    tls = {role: authority.enrol(role, name, prefix) for role, name in (("target", "outpost"), ("agent", "shop"))}
    ground.site.stop(process)
    site = Watched(ground, agent={"tls": tls["agent"]}, target={"tls": tls["target"]})
    site.start()
    site.start_prometheus()
    rung = [*_authority_away(site, authority), *_rejected(site, Path(tls["target"]["certificate"]))]
    assert set(rung) == RINGS
    ground.measured["alerts that rang and ended"] = len(rung)


class _Authority:
    """A CA and its service."""

    def __init__(self, ground: Ground, port: int) -> None:
        self._ground, self._port = ground, port
        self.folder = ground.folder / "ca"

    def start(self, prefix: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Serve; the CA is made before it is started for the first time."""
        if not self.folder.exists():
            self._ground.drengine("ca", "init", "--ca", self.folder, prefix=prefix)
        where = f"127.0.0.1:{self._port}"
        words = (DRENGINE, "ca", "serve", "--ca", str(self.folder), "--host", "127.0.0.1", "--listen", where)
        log = self._ground.folder / "authority.log"
        seen = log.stat().st_size if log.exists() else 0
        process = self._ground.site.start("authority", *words, prefix=prefix)
        self._ground.until("the authority is ready", lambda: b"is ready" in log.read_bytes()[seen:])
        return process

    def enrol(self, role: str, name: str, prefix: Sequence[str]) -> dict[str, str]:
        """A party's [tls]."""
        ground, folder = self._ground, self._ground.folder / f"identity-{name}"
        hosts = ("--host", "127.0.0.1") if role == "target" else ()
        words = ("token", "create", "--ca", self.folder, "--role", role, "--name", name, *hosts)
        token = ground.drengine(*words, prefix=prefix).output.strip()
        command = ground.agent if role == "agent" else ground.drengine
        command("enrol", "--name", name, "--to", folder, "--json", prefix=prefix, env={"DRENGINE_TOKEN": token})
        return {option: str(folder / file) for option, file in FILES.items()}


def _authority_away(site: Watched, authority: _Authority) -> list[str]:
    alerts = ("DrengineCertificateExpires", "DrengineRenewalFails", "DrengineAuthoritySilent")
    for alert in alerts:
        site.until_firing(alert, rings=True, seconds=SILENT_SECONDS)
        jobs = {each["job"] for each in site.firing(alert)}
        assert jobs <= {"drengine-agent", "drengine-target"}, jobs
    authority.start()
    for alert in alerts:
        site.until_firing(alert, rings=False, seconds=RENEWED_SECONDS)
    return list(alerts)


def _rejected(site: Watched, certificate: Path) -> list[str]:
    """Something else is written over the target's certificate; those in use go on until it is right again."""
    file = certificate.resolve()
    good = file.read_bytes()
    with site.rings("DrengineCertificateRejected"):
        file.write_bytes(b"no certificate\n")
    file.write_bytes(good)
    return site.ended("DrengineCertificateRejected")
