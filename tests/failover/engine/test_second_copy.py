"""The second copy alone: a drill on it while it is kept, then the original is lost and a failover recovers from it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from drengine.store.store import Store
from tests.failover.engine.test_real_parts import BLOCK, Site, eventually, free_ports, write, write_configuration


@pytest.fixture
def site() -> Iterator[Site]:
    """One site with the agent, its target and a mirror; at the other the copy, a target that serves it, the runs."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        target, broker, rest, second = free_ports(4)
        write_configuration(directory, target, broker, rest)
        (directory / "second.toml").write_text(
            f'store = "{directory}/copy"\nlisten = "127.0.0.1:{second}"\nnbd_socket = "{directory}/second.sock"\n'
        )
        orchestrator = directory / "orchestrator.toml"
        text = orchestrator.read_text().replace(f"{directory}/store", f"{directory}/copy")
        orchestrator.write_text(text.replace("nbd.sock", "second.sock"))
        made = Site(directory)
        stack.callback(made.end)
        Store.create(directory / "store").close()
        made.start("target", "target", "run", "--config", str(directory / "target.toml"))
        made.start(
            "mirror", "mirror", str(directory / "store"), str(directory / "copy"), "--follow", "--interval", "100ms"
        )
        made.start("agent", "run", "-c", str(directory / "agent.toml"))
        eventually(lambda: points(made))
        made.start("second", "target", "run", "--config", str(directory / "second.toml"))
        eventually((directory / "second.sock").exists)
        made.start("orchestrator", "orchestrator", "run", "--config", str(orchestrator))
        eventually(made.hears_agent)
        yield made


def points(site: Site) -> list[str]:
    """Labels of the points that the copy has."""
    with Store.open(site.directory / "copy", read_only=True) as copy:
        return [point.label for point in copy.points("shop")]


@pytest.mark.timeout(600)  # a bound for what hangs: a busy machine takes minutes
def test_a_shop_is_drilled_on_the_second_copy_and_recovered_from_it_alone(site: Site) -> None:
    eventually(lambda: write(site, 0, b"written"))
    eventually(lambda: site.agent("status")["state"] == "CONTINUOUS")
    site.agent("cut", "--label", "before the drill")
    eventually(lambda: "before the drill" in points(site))
    book = str(site.directory / "shop.yaml")
    assert site.drengine("drill", book)["outcome"] == "completed"
    assert write(site, BLOCK, b"written after the drill")
    site.agent("cut", "--label", "after the drill")
    eventually(lambda: "after the drill" in points(site))
    assert site.processes["mirror"].poll() is None, "the drill did not end the mirroring"

    for name in ("target", "mirror"):
        site.kill(name)
    shutil.rmtree(site.directory / "store")
    failover = site.drengine("failover", book)
    assert (failover["outcome"], failover["fencing"]) == ("completed", {"shop": "agent"})
    with Store.open(site.directory / "copy", read_only=True) as copy:
        assert not copy.copy_of, "it is a store of its own"
        source = copy.source("shop")
        assert source.generation == 2
        with copy.head_view("shop", source.active_branch) as view:
            assert bytes(view.read(1, 0, 100)).startswith(b"written and recovered by " + failover["run"].encode())
            assert bytes(view.read(1, BLOCK, 23)) == b"written after the drill"
