"""The site under attack: real daemons with everything on, as demo/guard.py sets them up, and who comes to it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from demo import guard
from demo.files import SOURCE, Ports, write_files
from drengine.identity.signing import SigningCa
from drengine.transport.files import TlsFiles
from tests.field.ground import accepts
from tests.system.site import Site
from tests.transport.certificates import Authority

DRENGINE = "drengine.cli.main"
WEBS = tuple(f"web-{number}" for number in range(8))
"""Sources whose agents misbehave: each has a quota of sessions."""
READER, GREEDY = "reader", "greedy"
USER = "vic"
NAMELESS = "nameless"
PARTIES = {**{each: f"agent/{each}" for each in WEBS}, READER: "host/reader", GREEDY: "host/greedy", NAMELESS: ""}
REST = '\n[rest_tls]\ncertificate = "broker/certificate.pem"\nkey = "broker/key.pem"\n'


@dataclass
class Place:
    """Everything that who comes to it has to know.

    Attributes:
        folder: of all files.
        ports: of the daemons; NBD is served at `nbd`.
        daemons: the processes under attack, by name.
        files: certificates of the parties, by name; SOURCE's is the one it enrolled for.
        token: REST's, of an account that may look.
        invitation: a token for enrolment that counts, once.
        export: what READER and GREEDY may read.
    """

    folder: Path
    ports: Ports
    site: Site
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    files: dict[str, TlsFiles] = field(default_factory=dict)
    token: str = ""
    invitation: str = ""
    export: str = ""

    @property
    def ca(self) -> Path:
        """The CA that all trust."""
        return self.folder / "ca/ca.pem"

    @property
    def nbd(self) -> int:
        """The port of the exports."""
        return self.ports.home

    def servers(self) -> dict[str, int]:
        """Ports that strangers come to."""
        ports = self.ports
        return {
            "replication": ports.target,
            "exports": self.nbd,
            "rest": ports.rest,
            "broker": ports.broker,
            "authority": ports.authority,
        }

    def grant(self) -> None:
        """Let READER and GREEDY read the newest point."""
        point = self.site.run(DRENGINE, "points", "--store", "store")[-1]["id"]
        for holder in (READER, GREEDY):
            words = ("grant", "give", point, "--source", SOURCE, "--to", f"host/{holder}", "--for", "8h")
            given = self.site.run(DRENGINE, *words, "--store", "store")
            self.export = str(given["export"]).replace("VOLUME", "data")


def start(folder: Path) -> Place:
    """The daemons, each in a process of its own, and certificates for everybody.

    Raises:
        StoryFailed: something did not start.
    """
    place = Place(folder, Ports.pick(), Site(folder))
    write_files(folder, place.ports)
    place.daemons["authority"] = guard.start_guard(place.site, place.ports)
    _change(folder / "target.toml", f'nbd_listen = "127.0.0.1:{place.nbd}"\n', "")
    _change(folder / "orchestrator.toml", "", REST)
    place.site.run(DRENGINE, "target", "init", "--config", "target.toml")
    _admit(place)
    for name in ("target", "orchestrator"):
        place.daemons[name] = place.site.start(name, DRENGINE, name, "run", "--config", f"{name}.toml")
    _issue(place)
    for name, port in place.servers().items():
        place.site.wait(f"{name} listens", partial(_accepts, port))
    return place


def _admit(place: Place) -> None:
    """An account that may look, and a token for enrolment."""
    known = ("--config", "orchestrator.toml")
    place.site.run(DRENGINE, "user", "add", USER, "--role", "viewer", "--no-password", *known)
    place.token = place.site.run(DRENGINE, "user", "token", "create", USER, *known)["token"]
    words = ("token", "create", "--ca", "ca", "--role", "agent", "--name", "late", "--ttl", "1h")
    place.invitation = place.site.run(DRENGINE, *words)["token"]


def _issue(place: Place) -> None:
    signing = SigningCa.parse(place.ca, (place.folder / "ca/ca.key").read_bytes())
    name = signing.certificate.subject.rfc4514_string().removeprefix("CN=")
    site = Authority(place.folder / "parties", name, signing.key(None), place.ca)
    site.folder.mkdir()
    for name, identity in PARTIES.items():
        uris = (f"drengine://{guard.SITE}/{identity}",) if identity else ()
        place.files[name] = site.issue(name, uris=uris)
    own = place.folder / "agent"
    place.files[SOURCE] = TlsFiles(own / "certificate.pem", own / "key.pem", own / "ca.pem")


def _change(path: Path, first: str, last: str) -> None:
    path.write_text(first + path.read_text() + last)


def _accepts(port: int) -> bool:
    try:
        return accepts(port)
    except OSError:
        return False
