"""The real target with a store that is encrypted at rest: nothing readable is left on its disk, nor in its log."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from xxhash import xxh3_128_digest

from drengine.crypt.options import EncryptionOptions, load_keks, write_key_file
from drengine.store.store import Store
from tests import typed as commands
from tests.store.harness import Source
from tests.target.agent import join
from tests.target.test_process import target

pytestmark = pytest.mark.timeout(90)
WORDS = b"account 4711 belongs to Ms. Example; "
TEXT = (WORDS * 2000)[:65536]


def typed(*words: str, key: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    if key:
        environment["DRENGINE_KEY_FILE"] = str(key)
    return commands.typed(commands.DRENGINE, *words, env=environment)


def encrypted_store(folder: Path) -> tuple[Path, Path, Path]:
    """A store, its key's file, and a configuration that names both."""
    store, key, config = folder / "store", folder / "kek", folder / "target.toml"
    write_key_file(key)
    Store.create(store, keks=load_keks(EncryptionOptions(key_file=key), store)).close()
    config.write_text(f'store = "{store}"\n[encryption]\nkey_file = "{key}"\n')
    return store, key, config


def is_nowhere(folder: Path) -> None:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        for part in (WORDS, WORDS[::-1], xxh3_128_digest(TEXT)):
            assert part not in data, path


async def test_what_an_agent_ships_is_nowhere_on_the_targets_disk_and_comes_back_with_the_key(tmp_path: Path) -> None:
    store, key, config = encrypted_store(tmp_path)
    async with target(store, "--config", str(config)) as running:
        agent = await join(running.address)
        await agent.declare()
        await agent.write(0, TEXT)
        await agent.write(1 << 20, TEXT[::-1])
        last = await agent.cut()
        await agent.until(lambda: agent.acks and agent.acks[-1] >= last)
        said = json.dumps(running.lines)
        running.process.send_signal(signal.SIGKILL)
        await running.process.wait()
        await agent.close()
    is_nowhere(tmp_path)
    assert "4711" not in said and key.read_text().strip() not in said
    done = typed("verify", "latest", "--store", str(store))
    assert done.returncode == 200 and "[key-needed]" in done.stderr and "Traceback" not in done.stderr
    done = typed("verify", "latest", "--store", str(store), key=key)
    assert done.returncode == 0, done.stderr
    heads = typed("audit", "show", str(store), "--did", "store.head", "--json").stdout
    head = json.loads(typed("keys", "status", "--store", str(store), "--json", key=key).stdout)["head"]
    assert head.split("-")[0] in heads, "the target noted its store's head in the audit log"
    done = typed("restore", "latest", "--store", str(store), "--to", f"data={tmp_path / 'out.img'}", key=key)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.img").read_bytes()[: len(TEXT)] == TEXT


@pytest.mark.parametrize(
    ("section", "id"),
    [
        ("", "key-needed"),
        ('key_file = "/no/such/key"', "key-unusable"),
        ('key_command = ["sleep", "60"]\nkey_command_seconds = "1s"', "key-unusable"),
        ('key_command = ["false"]', "key-unusable"),
        ('credential = "kek"', "key-unusable"),
        ('key_file = "OTHER"', "key-wrong"),
        ('key_file = "OTHER"\ncredential = "kek"', "bad-config"),
    ],
)
def test_a_target_without_its_stores_key_does_not_start_and_says_why(tmp_path: Path, section: str, id: str) -> None:
    store, _, config = encrypted_store(tmp_path)
    write_key_file(tmp_path / "other")
    section = section.replace("OTHER", str(tmp_path / "other"))
    config.write_text(f'store = "{store}"\nlisten = "127.0.0.1:0"\n[encryption]\n{section}\n')
    done = typed("target", "run", "--config", str(config))
    assert done.returncode not in (0, 1, 2) and id in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_keys_are_looked_after_by_commands(tmp_path: Path) -> None:
    store, key, _ = encrypted_store(tmp_path)
    with Store.open(store, keks=load_keks(EncryptionOptions(key_file=key), store)) as opened:
        source = Source(opened, "shop", disk=4096)
        source.commit()
        source.writer.close()

    def answer(*words: str, key: Path = key) -> object:
        done = typed("keys", *words, "--store", str(store), "--json", key=key)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert len(answer("list")[0]["keys"]) == 1  # type: ignore[index]
    assert set(answer("rotate")) == {"shop"}  # type: ignore[call-overload]
    assert len(answer("list")[0]["keys"]) == 2  # type: ignore[index]
    new = tmp_path / "new"
    made = json.loads(typed("keys", "generate", str(new), "--json").stdout)
    answer("rewrap", "--previous", str(key), key=new)
    assert answer("status", key=new)["key"] == made["key"]  # type: ignore[index]
    assert "[key-wrong]" in typed("keys", "status", "--store", str(store), key=key).stderr
    done = typed("keys", "forget", "shop", "--store", str(store), key=new)
    assert done.returncode == 2 and "--confirm shop" in done.stderr
    assert answer("forget", "shop", "--confirm", "shop", key=new)["keys"] == 2  # type: ignore[index]
    assert all(each["erased_ns"] for each in answer("list", key=new)[0]["keys"])  # type: ignore[index]
