"""Everything on: a CA, hosts enrolled by token, TLS with identities, signed orders, an encrypted store."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

from demo.disks import KNOWN_BYTES
from demo.files import Ports
from demo.site import Site, accepts

SITE = "demo"
PARTIES = {"target": "outpost", "broker": "broker", "orchestrator": "orchestrator", "agent": "shop"}
SERVERS = ("target", "broker")
KEY_FILE = "store.key"
NEEDLE_BYTES = 64
NEEDLES = 16
_FILES = 'certificate = "{role}/certificate.pem"\nkey = "{role}/key.pem"\nca = "{role}/ca.pem"\n'
_EMBEDDED = 'embedded_certificate = "broker/certificate.pem"\nembedded_key = "broker/key.pem"\n'
_KEY = f'\n[encryption]\nkey_file = "{KEY_FILE}"\n'


def start_guard(site: Site, ports: Ports) -> subprocess.Popen[bytes]:
    """Make the CA, let it serve, enrol everybody, make the store's key, and name all of it in the files.

    Returns: the authority's process.
    """
    site.run("drengine.cli.main", "ca", "init", "--ca", "ca", "--site", SITE)
    serve = ("ca", "serve", "--ca", "ca", "--host", "127.0.0.1", "--listen", f"127.0.0.1:{ports.authority}")
    authority = site.start("authority", "drengine.cli.main", *serve)
    site.wait("the authority listens", lambda: accepts(ports.authority))
    for role, name in PARTIES.items():
        hosts = ("--host", "127.0.0.1") if role in SERVERS else ()
        words = ("token", "create", "--ca", "ca", "--role", role, "--name", name, *hosts)
        token = site.run("drengine.cli.main", *words)["token"]
        program = "drengine_agent" if role == "agent" else "drengine.cli.main"
        site.run(program, "enrol", "--token", token, "--name", name, "--to", role)
    site.run("drengine.cli.main", "keys", "generate", KEY_FILE)
    os.environ["DRENGINE_KEY_FILE"] = str(site.folder / KEY_FILE)
    _add(
        site.folder / "target.toml", 'exports = "granted"\n', f'\n[tls]\n{_of("target")}identities = "required"\n{_KEY}'
    )
    agent = site.folder / "agent.toml"
    _add(agent, "", f"\n[tls]\n{_of('agent')}")
    _into(agent, "[control]\n", f'site = "{SITE}"\n{_of("agent")}')
    orchestrator = site.folder / "orchestrator.toml"
    _add(orchestrator, "", _KEY)
    _into(orchestrator, "[broker]\n", f'site = "{SITE}"\n{_of("orchestrator")}{_EMBEDDED}')
    return authority


def places_of_known_plaintext(folder: Path, seed: int) -> list[str]:
    """Files of the recovery side that hold in clear what was on the source's disk: there should be none."""
    known = random.Random(seed).randbytes(KNOWN_BYTES)
    step = KNOWN_BYTES // NEEDLES
    needles = [known[at : at + NEEDLE_BYTES] for at in range(0, KNOWN_BYTES, step)]
    found = []
    for place in ("store", "orchestrator"):
        for path in sorted((folder / place).rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                found += [str(path.relative_to(folder))] if any(each in content for each in needles) else []
    return found


def _of(role: str) -> str:
    return _FILES.format(role=role)


def _add(path: Path, first: str, last: str) -> None:
    path.write_text(first + path.read_text() + last)


def _into(path: Path, section: str, lines: str) -> None:
    path.write_text(path.read_text().replace(section, section + lines))
