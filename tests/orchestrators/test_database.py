"""The registry's PostgreSQL restarts, or its standby takes over, while a run is carried out: it ends all the same."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.orchestrators.rig import Rig, rig, until
from tests.orchestrators.test_takeover import begin, judge
from tests.postgres import CONNECTIONS_MAX, Postgres
from tests.system.postgres import Server, as_postgres, skip_unless_installed

pytestmark = pytest.mark.timeout(300)


def under_way(site: Rig) -> str:
    """A run in the middle of a step."""
    for name in ("one", "two"):
        site.add(name)
    site.ready()
    site.effects_take("3")
    run = begin(site)
    until(lambda: "begin before" in site.ledger(), "its first program")
    site.effects_take("0.2")
    return run


def finished(site: Rig, run: str) -> None:
    def over() -> bool:
        site.keep_alive()
        try:
            return site.run_of(run).state.value in ("finished", "stopped")
        except Exception:  # noqa: BLE001 - the server is away
            return False

    until(over, "its end", 120)
    judge(site, run)


def test_a_server_that_is_killed_and_comes_back_ends_no_run(tmp_path: Path) -> None:
    with Postgres() as server, rig(tmp_path, server.fresh_database()) as site:
        run = under_way(site)
        server.kill()
        server.start()
        finished(site, run)


def test_a_standby_that_takes_over_goes_on_with_every_run(tmp_path: Path) -> None:
    programs = skip_unless_installed()
    with Postgres("synchronous_standby_names=*") as first:
        name = f"r{secrets.token_hex(4)}"
        copy = first.folder / "data" / "standby"
        source = ["-h", str(first.sockets), "-p", str(first.port), "-U", "postgres"]
        subprocess.run(
            [str(programs / "pg_basebackup"), "-D", str(copy), "-R", "-X", "stream", "-c", "fast", *source],
            check=True,
            **as_postgres(),
        )
        port = first.port + 1
        settings = ("listen_addresses=127.0.0.1", f"max_connections={CONNECTIONS_MAX}")
        following = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
        with Server(programs, copy, first.sockets, port, settings=settings) as standby:
            until(lambda: first.server.ask(following) == "1", "it follows")
            first.server.ask(f"CREATE DATABASE {name}")
            hosts = "&".join(f"host=127.0.0.1:{each}" for each in (first.port, port))
            with rig(tmp_path, f"postgresql://postgres@/{name}?{hosts}") as site:
                run = under_way(site)
                before = site.registry.entries(run)
                first.kill()
                standby.ask("SELECT pg_promote()")
                finished(site, run)
                assert site.registry.entries(run)[: len(before)] == before, "nothing that was kept is lost"
        shutil.rmtree(copy, ignore_errors=True)
