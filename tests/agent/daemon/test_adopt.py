"""A replaced disk: refused until somebody says so, then brought home whole; and what an older note knew of a disk."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from drengine.config import joined
from drengine.model.errors import DrengineError
from drengine.terminal import main
from drengine_agent.cli.main import commands
from drengine_agent.daemon.adopt import adopt
from drengine_agent.errors import AGENT_RUNNING, NOT_A_REPLACEMENT, REVERSE_REFUSED
from drengine_agent.fencing.fence import SOURCE_FENCED
from drengine_agent.install.configuration import configuration_text
from tests.agent.failback.home import MIB, SIZE, Home, at_home, until

pytestmark = pytest.mark.timeout(180)


def new_disk(home: Home, content: bytes, name: str = "disk1") -> None:
    home.path(name).rename(home.path(f"old-{name}"))
    home.path(name).write_bytes(content)


def typed(home: Home, hint: str) -> int:
    """Types the command that a hint names, with the configuration's place, as an operator would."""
    found = re.search(r"`drengine-agent ([^`]*)`", hint)
    assert found is not None, hint
    config = home.folder / "agent.toml"
    if not config.exists():
        state = home.config.state_directory
        values = {"source": home.source, "target": joined(home.config.target), "tracker": home.config.tracker}
        listen = {"nbd": {"listen": f"unix:{home.folder}/n.sock"}} if home.config.tracker == "nbd" else {}
        volumes = [{"name": name, "path": str(home.path(name))} for name in home.names]
        config.write_text(configuration_text({**values, "state_directory": str(state), **listen, "volume": volumes}))
    return main(commands, [*shlex.split(found[1]), "--config", str(config)])


def refused_at_start(home: Home) -> DrengineError:
    with pytest.raises(DrengineError) as refused:
        home.start()
    assert refused.value.kind.id == "volume-replaced"
    return refused.value


@pytest.mark.fault(27)
@pytest.mark.parametrize("tracker", ["nbd", "scan"])
@pytest.mark.parametrize("larger", [0, MIB + 512])
async def test_a_replaced_disk_comes_home_whole_once_it_is_adopted(tmp_path: Path, tracker: str, larger: int) -> None:
    async with at_home(tmp_path, tracker=tracker, volumes=2) as home:
        await home.caught_up()
        branch = home.promote()
        await home.work(branch, [(5000, b"written at the recovered side")])
        await home.stop()
        beyond = bytearray(home.disk("disk2"))
        beyond[:6] = b"beyond"
        home.path("disk2").write_bytes(beyond)
        new_disk(home, b"\xff" * (SIZE + larger))

        assert typed(home, refused_at_start(home).hint) == 0
        agent = home.start()
        assert agent.is_fenced
        assert agent.status()["replaced"] == ["disk1"]
        with pytest.raises(DrengineError, match="holds nothing of this source") as early:
            await agent.release(2)
        assert early.value.kind is REVERSE_REFUSED
        diverged = home.diverge()
        await agent.preserve(diverged.number, diverged.generation)
        (kept,) = home.store.points("shop", branch=diverged.number)
        assert home.shown(kept) == {"disk2": bytes(beyond)}, "of the old disks only this one was left"

        point = await home.last_point(branch)
        report = await agent.reverse(point.id)
        assert report.bytes_compared == report.bytes_total == 2 * SIZE
        wanted = home.shown(point)
        assert home.disk("disk1") == wanted["disk1"] + b"\xff" * larger
        assert home.disk("disk2") == wanted["disk2"]
        handed = home.promote(point)
        await agent.release(handed.generation, handed.number)
        assert (await home.caught_up()).size_bytes == 2 * SIZE + larger
        await home.restart()
        await home.caught_up()


@pytest.mark.fault(27)
async def test_a_smaller_disk_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    async with at_home(tmp_path) as home:
        await home.caught_up()
        branch = home.promote()
        await home.stop()
        new_disk(home, b"\xff" * (SIZE - 512))
        assert typed(home, refused_at_start(home).hint) == 0
        agent = home.start()
        diverged = home.diverge()
        assert (await agent.preserve(diverged.number, diverged.generation)).sequence == 0
        with pytest.raises(DrengineError, match=f"{SIZE} bytes at the point") as refused:
            await agent.reverse((await home.last_point(branch)).id)
        assert refused.value.kind is REVERSE_REFUSED
        assert home.disk() == b"\xff" * (SIZE - 512)


@pytest.mark.parametrize("tracker", ["nbd", "scan"])
async def test_a_disk_that_holds_the_content_already_goes_on_and_ships_what_differs(
    tmp_path: Path, tracker: str
) -> None:
    async with at_home(tmp_path, tracker=tracker) as home:
        await home.caught_up()
        content = bytearray(home.disk())
        await home.stop()
        content[70_000:70_003] = b"new"
        new_disk(home, bytes(content))
        refused_at_start(home)
        done = adopt(home.config, "disk1", home.clock, with_content=True)
        assert (done.standing, done.declared) == ("in-charge", done.formerly)
        agent = home.start()
        await home.caught_up()
        assert 0 < agent.traffic.plain_bytes <= 64 << 10
        assert agent.status()["volumes"][0]["declared"] == done.formerly  # type: ignore[index]


async def test_a_journal_of_the_old_disk_says_nothing_of_the_new_one(tmp_path: Path) -> None:
    async with at_home(tmp_path) as home:
        await home.caught_up()
        agent = home.agent
        assert agent is not None
        agent.pause()
        await until(lambda: agent.pipeline is None)
        await home.write(0, b"of the old disk")
        # As a kill would leave it: the journal has what the target has not.
        state = home.config.state_directory
        left = {path: path.read_bytes() for path in (state / "tap").rglob("*") if path.is_file()}
        await home.stop()
        for path, content in left.items():
            path.write_bytes(content)
        new_disk(home, bytes(SIZE))
        adopt(home.config, "disk1", home.clock, with_content=True)
        agent = home.start()
        assert home.disk() == bytes(SIZE)
        agent.resume()
        await home.caught_up()
        assert agent.status()["rescans"] != {}


async def test_a_host_that_forgot_everything_is_told_what_to_say(tmp_path: Path) -> None:
    async with at_home(tmp_path, tracker="scan") as home:
        await home.caught_up()
        content = home.disk()
        await home.stop()
        (home.config.state_directory / "state.json").unlink()
        new_disk(home, content)
        agent = home.start()
        await until(lambda: agent.status()["state"] == "STOPPED")
        detail = str(agent.status()["detail"])
        await home.stop()
        assert typed(home, detail.replace("adopt", "adopt --with-content")) == 0
        home.start()
        await home.caught_up()


async def test_what_is_no_replacement_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with at_home(tmp_path) as home:
        with pytest.raises(DrengineError) as running:
            adopt(home.config, "disk1", home.clock)
        assert running.value.kind is AGENT_RUNNING
        assert "systemctl stop" in running.value.hint
        await home.stop()
        for name, told in (("disk1", "as before"), ("disk7", "no volume is named")):
            with pytest.raises(DrengineError, match=told) as refused:
                adopt(home.config, name, home.clock)
            assert refused.value.kind is NOT_A_REPLACEMENT
        assert not home.start().is_fenced


async def test_a_source_that_was_fenced_by_adoption_serves_nobody_after_a_restart(tmp_path: Path) -> None:
    async with at_home(tmp_path) as home:
        await home.stop()
        new_disk(home, bytes(SIZE))
        assert adopt(home.config, "disk1", home.clock).standing == "fenced"
        agent = home.start()
        assert not agent.is_serving
        with pytest.raises(DrengineError) as refused:
            await agent.quiesce()
        assert refused.value.kind is SOURCE_FENCED
        await agent.release(0, force=True)
        assert agent.status()["replaced"] == []


@pytest.mark.fault(76)
async def test_a_note_of_an_older_version_is_enough(tmp_path: Path) -> None:
    async with at_home(tmp_path) as home:
        await home.stop()
        path = home.config.state_directory / "state.json"
        known = json.loads(path.read_bytes())
        known["volumes"] = {
            name: {"number": each["number"], "identity": each["identity"]} for name, each in known["volumes"].items()
        }
        path.write_text(json.dumps(known))
        home.start()
        await home.stop()
        assert json.loads(path.read_bytes())["volumes"]["disk1"]["evidence"]["inode"]
