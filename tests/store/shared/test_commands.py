"""`drengine store create` and `join`, and how they get at the database: never by a password that is written down."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from drengine.store.errors import CATALOGUE_FOREIGN, CATALOGUE_REFUSED, CATALOGUE_URL, STORE_EXISTS
from drengine.store.identity import IDENTITY_NAME, read_store_file
from tests.postgres import Postgres
from tests.typed import DRENGINE, typed

SECRET = "correct-horse"


def drengine(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return typed(DRENGINE, *arguments, env={**os.environ, **environment})


def test_a_store_is_made_used_and_not_made_twice(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.fresh_database()
    made = drengine("store", "create", tmp_path / "one", "--catalogue", url, "--json")
    assert made.returncode == 0, made.stderr
    file = read_store_file(tmp_path / "one")
    assert json.loads(made.stdout)["store_id"] == file.identity.hex()
    assert file.catalogue == url
    shown = drengine("status", "--store", tmp_path / "one")
    assert shown.returncode == 0, shown.stderr
    again = drengine("store", "create", tmp_path / "two", "--catalogue", url)
    assert again.returncode == STORE_EXISTS.exit_code
    assert "drengine store join" in again.stderr
    joined = drengine("store", "join", tmp_path / "two", "--catalogue", url)
    assert joined.returncode == CATALOGUE_FOREIGN.exit_code
    assert "Traceback" not in again.stderr + joined.stderr
    assert not (tmp_path / "two" / IDENTITY_NAME).exists()


def test_a_password_comes_from_the_environment_or_a_file_and_is_shown_nowhere(tmp_path: Path) -> None:
    with Postgres() as server:
        rules = server.data / "pg_hba.conf"
        rules.write_text(f"host all guarded 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        server.server.ask(f"CREATE ROLE guarded LOGIN PASSWORD '{SECRET}'")
        name = server.database()
        server.server.ask(f"ALTER DATABASE {name} OWNER TO guarded")
        server.server.ask("SELECT pg_reload_conf()")
        url = server.tcp_url(name).replace("postgres@", "guarded@")
        nothing = {"PGPASSFILE": "/dev/null", "HOME": str(tmp_path)}
        refused = drengine("store", "create", tmp_path / "a", "--catalogue", url, **nothing)
        assert refused.returncode == CATALOGUE_REFUSED.exit_code, refused.stderr
        wrong = drengine("store", "create", tmp_path / "b", "--catalogue", url, PGPASSWORD="wrong")
        assert wrong.returncode == CATALOGUE_REFUSED.exit_code, wrong.stderr
        written = drengine("store", "create", tmp_path / "c", "--catalogue", url.replace("@", f":{SECRET}@"))
        assert written.returncode == CATALOGUE_URL.exit_code
        made = drengine("store", "create", tmp_path / "d", "--catalogue", url, PGPASSWORD=SECRET)
        assert made.returncode == 0, made.stderr
        file = tmp_path / ".pgpass"
        file.write_text(f"*:*:*:guarded:{SECRET}\n")
        file.chmod(0o600)
        listed = drengine("status", "--store", tmp_path / "d", PGPASSFILE=str(file))
        assert listed.returncode == 0, listed.stderr
        for each in (refused, wrong, written, made, listed):
            assert SECRET not in each.stdout + each.stderr
        assert SECRET not in (tmp_path / "d" / IDENTITY_NAME).read_text()
