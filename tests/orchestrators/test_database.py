"""The registry's PostgreSQL restarts, or its standby takes over, while a run is carried out: it ends all the same."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from pathlib import Path

import pytest

from drengine.failover.steps.programs import STEP_MARK
from drengine.process import find_marked
from tests.orchestrators.rig import Rig, rig, until
from tests.orchestrators.test_takeover import begin, judge
from tests.orchestrators.wire import wire
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


@pytest.mark.campaign
def test_a_server_that_is_killed_and_comes_back_ends_no_run(tmp_path: Path) -> None:
    with Postgres() as server, rig(tmp_path, server.fresh_database()) as site:
        run = under_way(site)
        server.kill()
        server.start()
        finished(site, run)


@pytest.mark.fault(60)
def test_an_executor_that_is_cut_off_gives_up_before_another_begins(tmp_path: Path, postgres: Postgres) -> None:
    """The kernel closes nothing: only its own clock tells the one that is cut off."""
    name = postgres.database()
    with rig(tmp_path, postgres.url(name)) as site, wire(postgres.port) as cable:
        one = site.add("one", url=f"postgresql://postgres@/{name}?host=127.0.0.1:{cable.port}")
        site.ready()
        site.effects_take("30")
        run = begin(site)
        until(lambda: "begin before" in site.ledger(), "its first program")
        cable.cut()
        marked = lambda: find_marked(STEP_MARK, f"{run}/all.before.1")  # noqa: E731
        until(lambda: not marked(), "its program is ended")
        lease = one_lease(site, run)
        assert site.owners(run)[-1] in lease, "nobody else was at work when it gave up"
        site.effects_take("0.2")
        site.add("two")
        assert site.ends(run).outcome.value == "completed"
        judge(site, run)
        cable.mend()
        until(one.answers, "it is there again")
        assert len(set(site.owners(run))) == 2


def one_lease(site: Rig, run: str) -> str:
    """Who holds a run's lease."""
    with site.registry._database.reading() as connection:
        found = connection.exec_driver_sql(f"SELECT owner FROM leases WHERE name = 'run:{run}'").scalar()
    return str(found)


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
