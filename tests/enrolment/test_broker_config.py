"""`drengine broker config` on a stock Debian: its main file, its user, its folders; and what stands in the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import aiomqtt
import pytest

from drengine.cli.main import app
from drengine.enrolment.mosquitto import write_file
from drengine.enrolment.place import Place
from drengine.identity.authority import Authority
from drengine.identity.errors import BROKER_FILES
from drengine.identity.keys import new_key, write_key
from drengine.identity.names import Identity, Role
from drengine.model.errors import DrengineError
from drengine.terminal import main
from drengine.transport.tls import client_context
from tests.control.site import free_port, mosquitto, until
from tests.enrolment.site import serving
from tests.transport.certificates import Authority as Foreign

USER = pwd.getpwuid(os.geteuid()).pw_name
STOCK = Path("/etc/mosquitto")
IN_PLACE = """
set -e
mount --bind "$1/etc" /etc/mosquitto
for name in run/mosquitto var/lib/mosquitto var/log/mosquitto; do
  mkdir -p "/$name" "$1/$name"; mount --bind "$1/$name" "/$name"; chown mosquitto "/$name"
done
"$2" -m drengine.cli.main broker config --ca "$1/ca" --port "$3" >&2
exec "$4" -c /etc/mosquitto/mosquitto.conf
"""
needs_debian = pytest.mark.skipif(
    os.geteuid() != 0 or not (STOCK / "conf.d").is_dir(), reason="needs root, and Debian's mosquitto"
)


def issue(authority: Authority, role: Role, name: str, folder: Path, hosts: tuple[str, ...] = ()) -> Place:
    """A party's files, as `drengine ca issue` lays them."""
    key = new_key()
    issued = authority.issue(Identity("main", role, name), key.public_key(), hosts=hosts)
    folder.mkdir()
    for file, content in (("key", write_key(key)), ("certificate", issued.certificate), ("ca", authority.certificate)):
        (folder / f"{file}.pem").write_bytes(content)
        (folder / f"{file}.pem").chmod(0o600)
    return Place(folder)


@contextlib.contextmanager
def started(folder: Path, port: int) -> Iterator[None]:
    """Debian's broker with Debian's files, in a mount namespace: nothing of this machine's is written."""
    words = ["unshare", "--mount", "sh", "-c", IN_PLACE, "sh", folder, sys.executable, port, mosquitto()]
    with (folder / "said").open("wb") as log:
        process = subprocess.Popen([*map(str, words)], stdout=log, stderr=log)
    try:
        yield
        assert process.poll() is None, (folder / "said").read_text()
    finally:
        process.terminate()
        process.wait(20)


@needs_debian
async def test_a_stock_debian_starts_with_what_is_written_and_lets_the_enrolled_in(tmp_path: Path) -> None:
    shutil.copytree(STOCK, tmp_path / "etc")
    assert "persistence_location" in (tmp_path / "etc/mosquitto.conf").read_text(), "as Debian 12 ships it"
    authority, port = Authority.create(tmp_path / "ca", "main"), free_port()
    issue(authority, Role.BROKER, "broker", tmp_path / "etc/drengine", hosts=("127.0.0.1",))
    shop = issue(authority, Role.AGENT, "shop", tmp_path / "shop")
    boss = issue(authority, Role.ORCHESTRATOR, "boss", tmp_path / "boss")
    mill = issue(authority, Role.AGENT, "mill", tmp_path / "mill")
    with started(tmp_path, port):
        log = tmp_path / "var/log/mosquitto/mosquitto.log"
        await until(lambda: log.exists() and "running" in log.read_text(), "the broker")

        def client(place: Place) -> aiomqtt.Client:
            context = client_context(replace(place.files, crl=None))
            return aiomqtt.Client(
                "127.0.0.1", port, protocol=aiomqtt.ProtocolVersion.V5, tls_context=context, timeout=5.0
            )

        async with client(boss) as watching, client(shop) as heard, client(mill) as unheard:
            await watching.subscribe("drengine/#", 1)
            with contextlib.suppress(aiomqtt.MqttError):
                await unheard.publish("drengine/main/agent/shop/report", b"forged", 1)
            await heard.publish("drengine/main/agent/shop/report", b"true", 1)
            assert (await anext(aiter(watching.messages))).payload == b"true"
    assert (tmp_path / "var/lib/mosquitto/mosquitto.db").exists(), "reports outlive a restart"


def asked(to: Path, *words: str | Path) -> int:
    return main(app, ["broker", "config", "--to", str(to), "--user", USER, *map(str, words)])


async def test_an_enrolled_broker_asks_its_authority_who_there_is(tmp_path: Path) -> None:
    async with serving(tmp_path) as site:
        place = await site.joined("broker", Role.BROKER, hosts=("127.0.0.1",))
        await site.joined("shop")
        (tmp_path / "mosquitto").mkdir()
        assert await asyncio.to_thread(asked, tmp_path / "mosquitto", "--place", place.folder, "--port", "8884") == 0
    text = (tmp_path / "mosquitto/conf.d/drengine.conf").read_text()
    assert f"certfile {place.folder}/certificate.pem" in text and "listener 8884\n" in text
    assert f"crlfile {place.folder}/crl.pem" in text and "persistence_location" in text, "no main file says it"
    assert "user shop" in (place.folder / "drengine.acl").read_text()


def test_certificates_of_another_ca_are_held_to_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = Foreign.make(tmp_path / "other").issue("broker")
    place = tmp_path / "drengine"
    place.mkdir()
    for name, file in (("certificate", files.certificate), ("key", files.key), ("ca", files.ca)):
        shutil.copy(file, place / f"{name}.pem")
    assert asked(tmp_path, "--site", "north", "--orchestrator", "boss", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    acl = Path(told["acl"]).read_text()
    assert "user boss\ntopic read drengine/north/#" in acl and "pattern write drengine/north/agent/%u/report" in acl
    assert "crlfile" not in Path(told["configuration"]).read_text(), "Mosquitto starts with no CRL that is missing"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"to": "absent"}, "Mosquitto is not here"),
        ({"place": "absent"}, "holds no certificate of the broker"),
        ({"place": "outpost"}, "is drengine://main/target/outpost, and no broker's"),
        ({"user": "no-such-user"}, "this machine has no user no-such-user"),
    ],
)
def test_what_could_not_work_is_told_before_mosquitto_is_restarted(
    given: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = Authority.create(tmp_path / "ca", "main")
    issue(authority, Role.BROKER, "broker", tmp_path / "broker", hosts=("127.0.0.1",))
    issue(authority, Role.TARGET, "outpost", tmp_path / "outpost", hosts=("127.0.0.1",))
    values = {"to": ".", "place": "broker", "user": USER, **given}
    words = ["--to", str(tmp_path / values["to"]), "--place", str(tmp_path / values["place"]), "--user", values["user"]]
    assert main(app, ["broker", "config", "--ca", str(tmp_path / "ca"), *words]) == BROKER_FILES.exit_code
    told = capsys.readouterr().err
    assert said in told and "broker-files" in told


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives to others")
def test_a_key_behind_a_closed_folder_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = Authority.create(tmp_path / "ca", "main")
    issue(authority, Role.BROKER, "broker", tmp_path / "broker", hosts=("127.0.0.1",))
    tmp_path.chmod(0o700)
    words = ["--to", str(tmp_path), "--place", str(tmp_path / "broker"), "--user", "nobody"]
    assert main(app, ["broker", "config", "--ca", str(tmp_path / "ca"), *words]) == BROKER_FILES.exit_code
    assert "is closed to nobody" in capsys.readouterr().err


def test_follow_needs_an_enrolled_broker_and_files_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(app, ["broker", "follow", "--place", str(tmp_path)]) == 5
    assert "nobody has enrolled" in capsys.readouterr().err
    with pytest.raises(DrengineError, match="broker-files"):
        write_file(tmp_path / "no/acl", "")
