"""`make targets`: several targets of one store, killed and cut off again and again under load.

```
            10.84.0.1 hub: PostgreSQL, S3 (and the campaign)
               |
   +-----------+-----------+----------------+           each a network namespace, all on one switch
 t1 .11      t2 .12      t3 .13       sources .100: six agents, each with a writer of stamped blocks
```
After each blow: every source is CONTINUOUS again, within 10 s of the end of the lock that was in its way; its newest
point is exactly a prefix of the order in which its disk acknowledged writes; nothing that a target had acknowledged is
gone, and no agent had to compare anything.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from demo.site import Site, StoryFailed
from demo.writer import acknowledged_writes, check_prefix
from drengine.model.errors import DrengineError
from drengine.model.points import PointSelector
from drengine.store.catalogue.postgres.link import SCHEMA
from drengine.store.store import Store
from drengine_agent.daemon.client import ask
from tests.postgres import Postgres
from tests.s3.server import s3_server
from tests.s3.stores import place, use_keys

TARGETS = ("t1", "t2", "t3")
SOURCES = tuple(f"s{number}" for number in range(1, 7))
HUB, FIELD = "10.84.0.1", "10.84.0.100"
PORT, PG_PORT, S3_PORT = 7440, 5432, 8333
VOLUME_BYTES = 2 << 20
SLOT_BYTES = 4096
SLOTS = 256
AFTER_LOCK_SECONDS = 10.0
WAIT_SECONDS = 90.0
INSIDE = "DRENGINE_CAMPAIGN_HUB"
_ACTIVITY = (
    "SELECT pid, state, wait_event, extract(epoch FROM clock_timestamp() - state_change)::int, left(query, 90), "
    "pg_blocking_pids(pid) FROM pg_stat_activity WHERE datname = current_database() AND "
    "(state <> 'idle' OR wait_event_type = 'Lock')"
)
BLOWS = ("kill", "kill", "cut", "cut from the catalogue", "cut from the sources", "stop", "drain", "restart PostgreSQL")
TARGET = """\
store = "{name}"
name = "{name}"
listen = "{address}:7440"
data_networks = ["10.84.0.0/24"]
allow_plain = true
workers = 1
nbd_socket = "{name}.sock"
"""
AGENT = """\
source = "{name}"
target = {targets}
state_directory = "{name}-agent"
data_networks = ["10.84.0.0/24"]
allow_plain = true
workers = 1
point_interval = "500ms"
[nbd]
listen = "unix:{name}.tap"
journal = "64MiB"
[[volume]]
name = "data"
path = "{name}.img"
"""


def address_of(target: str) -> str:
    """Of a target's host."""
    return f"10.84.0.1{target[1:]}"


def ip(*arguments: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Switch:
    """The hosts' networks; made inside the hub's namespace."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        ip("link", "add", "switch", "type", "bridge")
        ip("address", "add", f"{HUB}/24", "dev", "switch")
        ip("link", "set", "switch", "up")

    def inside(self, host: str) -> list[str]:
        """Put before a command that runs on that host."""
        return ["nsenter", f"--net=/run/netns/{self._prefix}{host}"]

    def plug_in(self, host: str, address: str) -> None:
        """A new host."""
        name = f"{self._prefix}{host}"
        ip("link", "add", host, "type", "veth", "peer", "name", "lan", "netns", name)
        ip("link", "set", host, "master", "switch", "up")
        for words in (("address", "add", f"{address}/24", "dev", "lan"), ("link", "set", "lan", "up")):
            ip("-n", name, *words)
        ip("-n", name, "link", "set", "lo", "up")

    def cut(self, host: str, *, whom: str = "") -> Callable[[], None]:
        """Cut a host off from all others, or from one address; returns what mends it."""
        if not whom:
            ip("link", "set", host, "down")
            return lambda: ip("link", "set", host, "up")
        name = f"{self._prefix}{host}"
        ip("-n", name, "route", "add", "blackhole", f"{whom}/32")
        return lambda: ip("-n", name, "route", "delete", "blackhole", f"{whom}/32")


@dataclass
class Figures:
    """What was measured.

    Attributes:
        moved_seconds: from the end of the lock (or a drain's beginning) to CONTINUOUS at another target, by blow.
    """

    blows: Counter[str] = field(default_factory=Counter)
    moved_seconds: dict[str, list[float]] = field(default_factory=dict)
    points_checked: int = 0
    takeovers: int = 0

    def shown(self) -> dict[str, Any]:
        """For people and programs."""
        return {
            "blows": dict(self.blows),
            "takeovers": self.takeovers,
            "points_checked": self.points_checked,
            "seconds": {
                blow: {"median": sorted(each)[len(each) // 2], "worst": max(each), "count": len(each)}
                for blow, each in self.moved_seconds.items()
                if each
            },
        }


class Campaign:
    """One campaign in one folder, run inside the hub's namespace."""

    def __init__(
        self, folder: Path, seed: int, switch: Switch, postgres: Postgres, endpoint: str, blows: Sequence[str]
    ) -> None:
        self._blows = blows
        self._folder, self._switch, self._postgres = folder, switch, postgres
        self._site = Site(folder)
        self._random = random.Random(seed)
        self._seed = seed
        self._endpoint = endpoint
        self._database = postgres.database()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._acknowledged: dict[str, int] = dict.fromkeys(SOURCES, 0)
        self._written: dict[str, int] = dict.fromkeys(SOURCES, 0)
        self.figures = Figures()

    def begin(self, bucket: str) -> None:
        """Start everything and wait until every source replicates."""
        relays = [f"{HUB}:{PG_PORT}=127.0.0.1:{self._postgres.port}", f"{HUB}:{S3_PORT}={self._endpoint}"]
        self._site.start("relay", "tests.soak.relay", *relays)
        url = f"postgresql://postgres@{HUB}:{PG_PORT}/{self._database}?connect_timeout=3"
        where = place(f"http://{HUB}:{S3_PORT}", bucket)
        store = ["drengine.cli.main", "store"]
        self._site.wait("the way to the servers", lambda: _answers(HUB, PG_PORT) and _answers(HUB, S3_PORT))
        self._site.run(*store, "create", "hub", "--catalogue", url, "--storage", "s3", "--place", where)
        for name in TARGETS:
            self._switch.plug_in(name, address_of(name))
            self._site.run(*store, "join", name, "--catalogue", url)
            (self._folder / f"{name}.toml").write_text(TARGET.format(name=name, address=address_of(name)))
            self._start(name)
        self._switch.plug_in("sources", FIELD)
        for number, name in enumerate(SOURCES):
            self._begin_source(name, number)
        self._await("every source replicates", self._all_continuous)

    def _begin_source(self, name: str, number: int) -> None:
        (self._folder / f"{name}.img").write_bytes(bytes(VOLUME_BYTES))
        targets = json.dumps([f"{address_of(each)}:{PORT}" for each in TARGETS])
        (self._folder / f"{name}.toml").write_text(AGENT.format(name=name, targets=targets))
        self._site.start(
            name, "drengine_agent", "run", "--config", f"{name}.toml", prefix=self._switch.inside("sources")
        )
        plan = {
            "sockets": {"data": str(self._folder / f"{name}.tap")},
            "places": self._places(name),
            "seed": self._seed + number,
            "acknowledged": str(self._folder / f"{name}.acknowledged"),
            "pause_seconds": 1.0,
        }
        (self._folder / f"{name}.json").write_text(json.dumps(plan))
        self._site.start(f"{name}-writer", "demo.writer", f"{name}.json")

    def _places(self, name: str) -> list[tuple[str, int]]:
        slots = [("data", at) for at in range(0, VOLUME_BYTES, SLOT_BYTES)]
        return random.Random(f"{self._seed}{name}").sample(slots, SLOTS)

    def _start(self, name: str) -> None:
        words = ["drengine.cli.main", "target", "run", "--config", f"{name}.toml"]
        self._processes[name] = self._site.start(name, *words, prefix=self._switch.inside(name))
        # One that begins while PostgreSQL is away ends, and is started again by its unit: nobody does so here.
        self._site.wait(f"{name} listens", lambda: _answers(address_of(name), PORT))

    # ---- blows -----------------------------------------------------------------------------------------------

    def strike(self) -> str:
        """Deal one blow, wait until everything replicates again, mend, and check every source."""
        blow = self._random.choice(self._blows)
        owned = self._owners()
        victim = self._random.choice(sorted(set(owned.values()) or set(TARGETS)))
        hit = sorted(source for source, owner in owned.items() if owner == victim)
        self._remember()
        began = time.time()
        mend = self._deal(blow, victim)
        try:
            if blow != "restart PostgreSQL":
                self._see_them_move(blow, victim, hit, began)
        finally:
            mend()
        self._await("every source replicates again", self._all_continuous)
        self._check()
        self.figures.blows[blow] += 1
        return f"{blow} {victim} ({len(hit)} sources)"

    def _deal(self, blow: str, victim: str) -> Callable[[], None]:
        match blow:
            case "kill":
                self._site.kill(self._processes[victim])
                return lambda: self._start(victim)
            case "stop":
                self._site.stop(self._processes[victim])
                return lambda: self._start(victim)
            case "cut":
                return self._switch.cut(victim)
            case "cut from the catalogue":
                return self._switch.cut(victim, whom=HUB)
            case "cut from the sources":
                return self._switch.cut(victim, whom=FIELD)
            case "drain":
                words = ("drengine.cli.main", "target", "drain", victim, "--store", "hub", "--wait", "0s")
                self._site.run(*words)
                return lambda: self._site.run(*words, "--undo")
        if self._random.random() < 0.5:
            self._postgres.server.__exit__(None, None, None)
        else:
            self._postgres.kill()
        time.sleep(self._random.uniform(0.0, 4.0))
        self._postgres.start()
        return lambda: None

    def _see_them_move(self, blow: str, victim: str, hit: list[str], began: float) -> None:
        """Each source of the victim is CONTINUOUS at another target, soon after the lock's end."""
        ends = dict.fromkeys(hit, began)
        left = set(hit)
        deadline = time.monotonic() + WAIT_SECONDS
        while left:
            self._note_locks(victim, left, ends)
            for source in sorted(left):
                status = self._status(source)
                at = str(status.get("target", ""))
                if status.get("state") == "CONTINUOUS" and at != f"{address_of(victim)}:{PORT}":
                    left.discard(source)
                    seconds = max(0.0, time.time() - ends[source])
                    self.figures.moved_seconds.setdefault(blow, []).append(round(seconds, 2))
                    self.figures.takeovers += 1
                    if seconds > AFTER_LOCK_SECONDS:
                        raise StoryFailed(f"{source} was CONTINUOUS {seconds:.1f} s after its lock was over ({blow})")
            self._note_waiting(min((time.time() - ends[source] for source in left), default=0.0))
            if time.monotonic() > deadline:
                raise StoryFailed(f"{blow} of {victim}: {sorted(left)} did not move: {self._statuses()}")
            time.sleep(0.05)

    def _note_waiting(self, seconds: float) -> None:
        """Write down what the database does while a takeover takes long."""
        if seconds > AFTER_LOCK_SECONDS / 2:
            rows = self._query(_ACTIVITY)
            with (self._folder / "activity.log").open("a") as file:
                file.write(f"{time.time():.1f} {seconds:.1f} s\n" + "".join(f"  {row}\n" for row in rows))

    def _note_locks(self, victim: str, sources: set[str], ends: dict[str, float]) -> None:
        """When the locks that the victim has or had of these end."""
        found = self._query(f"SELECT name, holder, extract(epoch FROM expires)::float8 FROM {SCHEMA}.lock")
        for name, holder, expires in found:
            source = name.split("/")[1] if name.startswith("branch/") else ""
            if holder == victim and source in sources:
                # A lock that was let go has ended when that was seen first.
                ended = time.time() if expires < 0 else expires
                ends[source] = ended if expires >= 0 or ends[source] > time.time() else ends[source]

    # ---- what holds ------------------------------------------------------------------------------------------

    def _owners(self) -> dict[str, str]:
        found = self._query(f"SELECT name, holder FROM {SCHEMA}.lock WHERE expires > clock_timestamp()")
        return {name.split("/")[1]: holder for name, holder in found if name.startswith("branch/")}

    def _query(self, statement: str) -> list[Any]:
        with contextlib.suppress(psycopg.Error), psycopg.connect(self._postgres.url(self._database)) as connection:
            return list(connection.execute(statement).fetchall())
        return []

    def _status(self, source: str) -> dict[str, Any]:
        with contextlib.suppress(DrengineError, OSError):
            return dict(ask(self._folder / f"{source}-agent" / "control.sock", "status"))
        return {}

    def _statuses(self) -> dict[str, str]:
        found = {source: self._status(source) for source in SOURCES}
        return {name: f"{each.get('state')} {each.get('reason')} {each.get('detail')}" for name, each in found.items()}

    def _all_continuous(self) -> bool:
        return all(
            status.get("state") == "CONTINUOUS" and status.get("has_point") for status in map(self._status, SOURCES)
        )

    def _remember(self) -> None:
        """What the targets have acknowledged by now must never be gone."""
        for source in SOURCES:
            known = self._status(source).get("durable_sequence", 0)
            self._acknowledged[source] = max(self._acknowledged[source], known)

    def _await(self, what: str, condition: Callable[[], Any]) -> None:
        try:
            self._site.wait(what, condition, seconds=WAIT_SECONDS)
        except StoryFailed as error:
            raise StoryFailed(f"{error}; {self._statuses()}") from error

    def _check(self) -> None:
        with Store.open(self._folder / "hub", read_only=True) as store:
            for number, source in enumerate(SOURCES):
                self._check_source(store, source, self._seed + number)

    def _check_source(self, store: Store, source: str, seed: int) -> None:
        durable = max(each.durable_sequence for each in store.branches(source))
        if durable < self._acknowledged[source]:
            raise StoryFailed(f"{source}: {self._acknowledged[source]} was acknowledged, {durable} is there")
        if rescans := self._status(source).get("rescans"):
            raise StoryFailed(f"{source} had to compare: {rescans}")
        point = store.find_point(source, PointSelector())
        with store.view(point) as view:
            image = bytes(view.read(1, 0, VOLUME_BYTES))
        acknowledged = len(acknowledged_writes(self._folder / f"{source}.acknowledged"))
        prefix = check_prefix(lambda _, at, length: image[at : at + length], self._places(source), seed, acknowledged)
        if not prefix.intact:
            raise StoryFailed(f"{source}, point {point.id}: {prefix.problem}")
        if prefix.writes < self._written[source]:
            raise StoryFailed(f"{source} went back from write {self._written[source]} to {prefix.writes}")
        self._written[source] = prefix.writes
        self.figures.points_checked += 1

    def close(self) -> None:
        """End everything."""
        self._site.close()


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 1).close()
    except OSError:
        return False
    return True


def campaign(seed: int, blows: int, seconds: float, kinds: Sequence[str], tell: Callable[[str], None]) -> Figures:
    """Run one inside the hub's namespace; as many blows of these kinds as asked for, or as there is time for.

    Raises:
        StoryFailed: something that must hold did not.
    """
    use_keys()
    folder = Path(tempfile.mkdtemp(prefix="drengine-targets-"))
    with ExitStack() as stack:
        server, postgres = stack.enter_context(s3_server()), stack.enter_context(Postgres())
        endpoint = "{}:{}".format(*server.address)
        running = Campaign(folder, seed, Switch(os.environ[INSIDE]), postgres, endpoint, kinds)
        stack.callback(running.close)
        running.begin(server.bucket())
        until = time.monotonic() + seconds
        for number in range(1, blows + 1):
            began = time.monotonic()
            told = running.strike()
            tell(f"{number} {told}: {time.monotonic() - began:.1f} s")
            if time.monotonic() > until:
                break
    shutil.rmtree(folder)
    return running.figures


@contextlib.contextmanager
def namespaces() -> Iterator[list[str]]:
    """The hub's namespace and its hosts'; what to put before the command that runs the campaign inside."""
    prefix = f"tg{secrets.token_hex(2)}-"
    made: list[str] = []
    try:
        for host in ("hub", "sources", *TARGETS):
            ip("netns", "add", f"{prefix}{host}")
            made.append(f"{prefix}{host}")
        ip("-n", f"{prefix}hub", "link", "set", "lo", "up")
        yield ["env", f"{INSIDE}={prefix}", "nsenter", f"--net=/run/netns/{prefix}hub"]
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def main() -> int:
    """Run the campaign; the seed repeats it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="How many blows.")
    parser.add_argument("--only", choices=sorted(set(BLOWS)), action="append", help="Of this kind; may be repeated.")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31))
    parser.add_argument("--minutes", type=float, default=600.0, help="No blow begins after so long.")
    asked = parser.parse_args()
    if INSIDE not in os.environ:
        words = ["--kills", str(asked.kills), "--seed", str(asked.seed), "--minutes", str(asked.minutes)]
        words += [word for kind in asked.only or () for word in ("--only", kind)]
        with namespaces() as inside:
            return subprocess.call([*inside, sys.executable, "-m", "tests.soak.targets", *words])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"seed {asked.seed}", flush=True)
    try:
        figures = campaign(
            asked.seed, asked.kills, asked.minutes * 60, asked.only or BLOWS, lambda line: print(line, flush=True)
        )
    except StoryFailed as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    print(json.dumps(figures.shown()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
