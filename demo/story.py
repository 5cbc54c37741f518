"""What happens, act by act, and what was measured."""

from __future__ import annotations

import bisect
import json
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demo import guard, machine
from demo.customers import audit, confirmed_orders
from demo.database import DISK_BYTES, make_database_disk
from demo.disks import DATA_BYTES, LOG_BYTES, Slots, filesystem_clean, make_disks
from demo.files import SOURCE, Ports, write_files
from demo.outcome import Outcome
from demo.site import Site, StoryFailed, accepts
from demo.writer import Prefix, acknowledged_writes, check_prefix
from drengine.nbd.client import NbdClient

STAMPED = ("data", "log")
WRITING_SECONDS = 4.0
SHOPPING_SECONDS = 2.0
READ_BYTES = 8 << 20

Tell = Callable[[str, str], None]
"""Called with (act, what happened) as the story goes on."""


class Story:
    """One run in one folder."""

    def __init__(self, folder: Path, *, seed: int | None, tell: Tell, guarded: bool = False) -> None:
        self._folder = folder
        self._guarded = guarded
        self._site = Site(folder)
        self._tell = tell
        self._ports = Ports.pick()
        self.outcome = Outcome(seed=secrets.randbelow(2**31) if seed is None else seed)

    def play(self) -> Outcome:
        """Run every act; the outcome says whether it went as it should.

        Raises:
            StoryFailed: a process ended or something did not happen in time.
        """
        try:
            slots = self._make_source()
            target = self._start_outpost()
            self._switch_on()
            self._do_business(slots)
            self._rehearse()
            self._do_more_business()
            lost_at = self._lose_the_source()
            self._fail_over(lost_at)
            self._check_points(slots, lost_at)
            self._return_of_the_source()
            self._go_home(slots)
            self._stop_outpost(target)
            self._look_for_plaintext()
        finally:
            machine.pull_the_plug(self._folder)
            self._site.close()
        return self.outcome

    # ---- before ----------------------------------------------------------------------------------------------

    def _make_source(self) -> Slots:
        _, _, slots = make_disks(self._folder, self.outcome.seed)
        make_database_disk(self._folder / "orders.img")
        write_files(self._folder, self._ports)
        self._tell(
            "source",
            f"an ext4 disk of {DATA_BYTES >> 20} MiB, a raw log disk of {LOG_BYTES >> 20} MiB, "
            f"a disk of {DISK_BYTES >> 20} MiB with a database",
        )
        return slots

    def _start_outpost(self) -> subprocess.Popen[bytes]:
        if self._guarded:
            guard.start_guard(self._site, self._ports)
            self._tell("guard", "all four parties enrolled by token; TLS, identities, signed orders, encrypted store")
        self._site.run("drengine.cli.main", "target", "init", "--config", "target.toml")
        target = self._site.start("target", "drengine.cli.main", "target", "run", "--config", "target.toml")
        self._site.start("orchestrator", "drengine.cli.main", "orchestrator", "run", "--config", "orchestrator.toml")
        self._site.wait("the target listens", lambda: accepts(self._ports.target))
        self._site.wait("the broker listens", lambda: accepts(self._ports.broker))
        self._tell("outpost", f"target on loopback port {self._ports.target}, orchestrator with its broker")
        return target

    def _switch_on(self) -> None:
        begun = time.monotonic()
        machine.start_agent(self._folder)
        self._site.wait("the initial sync ends in a point", self._points)
        self.outcome.initial_sync_seconds = round(time.monotonic() - begun, 3)
        status = self._agent_status()
        self._tell(
            "initial sync",
            f"{(DATA_BYTES + LOG_BYTES + DISK_BYTES) >> 20} MiB compared and shipped in "
            f"{self.outcome.initial_sync_seconds:.2f} s, {status['bytes_sent'] / 2**20:.1f} MiB on the wire",
        )

    def _do_business(self, slots: Slots) -> None:
        plan = {
            "sockets": dict.fromkeys(STAMPED, str(self._folder / machine.TAP_SOCKET)),
            "places": slots.places,
            "seed": self.outcome.seed,
            "acknowledged": str(self._folder / "acknowledged"),
            "pause_seconds": 0.01,
        }
        (self._folder / "plan.json").write_text(json.dumps(plan))
        machine.start_writer(self._folder)
        machine.start_shop(self._folder)
        self._site.wait("the shop opens", lambda: audit(self._ports.home))
        self._send_customers("home", self._ports.home)
        self._pass_time(WRITING_SECONDS)
        status = self._agent_status()
        self.outcome.bytes_read, self.outcome.bytes_on_wire = status["bytes_read"], status["bytes_sent"]
        self._tell(
            "business",
            f"{len(self._stamped())} stamped writes, {len(self._orders('home'))} orders, state {status['state']}, "
            f"lag {status['lag_seconds']} s",
        )

    # ---- rehearsal -------------------------------------------------------------------------------------------

    def _rehearse(self) -> None:
        before, stamped = self._store_facts(), len(self._stamped())
        run = self._drengine("drill", "runbook.yaml", "--config", "orchestrator.toml")
        unchanged = self._store_facts() == before
        written = len(self._stamped()) - stamped
        self.outcome.drill_ok = run["outcome"] == "completed" and unchanged and written > 0
        self.outcome.drill_rto_seconds = round(run["rto_seconds"] or 0.0, 3)
        self._tell(
            "drill",
            f"{run['outcome']}: a copy of the shop was up and checked in {self.outcome.drill_rto_seconds:.2f} s; "
            f"{written} writes went on meanwhile; generation and branches are {'' if unchanged else 'NOT '}as before",
        )

    def _do_more_business(self) -> None:
        self._pass_time(SHOPPING_SECONDS)

    # ---- the worst day ---------------------------------------------------------------------------------------

    def _lose_the_source(self) -> float:
        lost_at = time.time()
        machine.pull_the_plug(self._folder)
        self.outcome.acknowledged_writes = len(self._stamped())
        self.outcome.confirmed_orders = len(self._orders("home"))
        self._tell(
            "disaster",
            f"the machine is dead, after {self.outcome.acknowledged_writes} writes and "
            f"{self.outcome.confirmed_orders} orders",
        )
        return lost_at

    def _fail_over(self, lost_at: float) -> None:
        run = self._drengine("failover", "runbook.yaml", "--config", "orchestrator.toml")
        outcome = self.outcome
        found = audit(self._ports.recovery) or {}
        outcome.recovered_orders = found.get("orders", 0)
        outcome.failover_ok = run["outcome"] == "completed" and found.get("intact", False)
        outcome.fenced = bool(run["fencing"]) and not run["unfenced"]
        outcome.rto_seconds = round(run["rto_seconds"] or 0.0, 3)
        outcome.rpo_seconds = round(run["rpo_seconds"] or 0.0, 3)
        outcome.outage_seconds = round(time.time() - lost_at, 3)
        self._failed_over_to = run["points"][SOURCE]["point"]
        confirmed = self._orders("home")
        promised = lost_at - outcome.rpo_seconds
        outcome.lost_writes_beyond_rpo += sum(
            number > outcome.recovered_orders and moment < promised for number, moment in confirmed.items()
        )
        self._tell(
            "failover",
            f"{run['outcome']}, fenced by {run['fencing'].get(SOURCE)}: the shop is open with "
            f"{outcome.recovered_orders} orders, {outcome.rto_seconds:.2f} s after the declaration; "
            f"at most {outcome.rpo_seconds:.3f} s lost",
        )
        outcome.report = self._report(run["run"])
        self._drengine("commit", run["run"], "--config", "orchestrator.toml")
        self._send_customers("recovered", self._ports.recovery)
        self._pass_time(SHOPPING_SECONDS)

    def _check_points(self, slots: Slots, lost_at: float) -> None:
        acknowledged = self._stamped()
        begun = time.monotonic()
        with self._export("data", self._failed_over_to) as data:
            data.read(0, 4096)
            self.outcome.read_seconds = round(time.monotonic() - begun, 3)
        points = [each for each in self._points() if each["id"].startswith("1-")]
        self.outcome.points = len(points)
        newest, before = (self._check(slots, id) for id in (self._failed_over_to, _older(points, acknowledged)))
        self.outcome.prefix_intact, self.outcome.recovered_writes = newest.intact, newest.writes
        self.outcome.older_prefix_intact, self.outcome.older_recovered_writes = before.intact, before.writes
        lost_from = acknowledged[newest.writes] if newest.writes < len(acknowledged) else lost_at
        self.outcome.lost_seconds = round(max(0.0, lost_at - lost_from), 3)
        promised = lost_at - self.outcome.rpo_seconds
        self.outcome.lost_writes_beyond_rpo += sum(moment < promised for moment in acknowledged[newest.writes :])
        self._tell(
            "points",
            f"{newest.writes} of {len(acknowledged)} stamped writes came back, a prefix over two disks; "
            f"an older point holds {before.writes}",
        )
        self.outcome.problems += [each.problem for each in (newest, before) if each.problem]
        self.outcome.filesystem_clean = self._clean(self._failed_over_to)
        self._tell("file system", "e2fsck finds it clean" if self.outcome.filesystem_clean else "DAMAGED")

    # ---- the way home ----------------------------------------------------------------------------------------

    def _return_of_the_source(self) -> None:
        machine.start_agent(self._folder)
        status = self._site.wait("the old source knows that it is stale", self._fenced_status)
        served = _serves(self._folder / machine.TAP_SOCKET)
        self.outcome.stale_source_refused = status["reason"] == "fenced" and not served
        self._tell(
            "stale source", f"switched on again: {status['state']} ({status['reason']}), its disks are not served"
        )

    def _go_home(self, slots: Slots) -> None:
        run = self._drengine("failback", "runbook.yaml", "--config", "orchestrator.toml")
        outcome = self.outcome
        found = self._site.wait("the shop is open at home", lambda: audit(self._ports.home))
        confirmed = len(self._orders("recovered"))
        outcome.orders_home = found["orders"]
        outcome.failback_bytes_shipped = run["bytes_shipped_back"] or 0
        everything = outcome.recovered_orders + confirmed
        outcome.failback_ok = (
            run["outcome"] == "completed"
            and found["intact"]
            and found["orders"] >= everything
            and audit(self._ports.recovery) is None
            and self._check_home(slots)
        )
        self._tell(
            "failback",
            f"{run['outcome']}: {outcome.failback_bytes_shipped / 2**20:.2f} MiB shipped back, out of service for "
            f"{run['outage_seconds'] or 0.0:.2f} s; the shop is home with {found['orders']} orders",
        )
        state = self._site.wait("the source is protected again", self._protected_status)
        self._tell("protected", f"state {state['state']}, lag {state['lag_seconds']} s, under the third generation")

    def _look_for_plaintext(self) -> None:
        self.outcome.guarded = self._guarded
        self.outcome.in_clear = guard.places_of_known_plaintext(self._folder, self.outcome.seed)
        if self._guarded:
            found = ", ".join(self.outcome.in_clear)
            self._tell("at rest", f"in clear: {found}" if found else "nothing of the disks lies in clear")

    def _check_home(self, slots: Slots) -> bool:
        """Whether the stamped disks at home are again what was failed over to."""
        volumes = {name: NbdClient(str(self._folder / machine.TAP_SOCKET), name) for name in STAMPED}
        try:
            found = self._prefix(volumes, slots)
        finally:
            for client in volumes.values():
                client.close()
        return found.intact and found.writes == self.outcome.recovered_writes

    def _report(self, run: str) -> str:
        reports = self._drengine("reports", "list", "--config", "orchestrator.toml")
        page = next((self._folder / each["page"] for each in reports if each["run"] == run), None)
        kept = self._folder.with_suffix(".html")  # beside the folder, which is removed
        return str(shutil.copy(page, kept)) if page else ""

    def _stop_outpost(self, target: subprocess.Popen[bytes]) -> None:
        machine.pull_the_plug(self._folder)
        target.send_signal(signal.SIGTERM)
        if code := target.wait(timeout=20):
            self.outcome.problems.append(f"the target ended with {code} after SIGTERM")

    # ---- asking ----------------------------------------------------------------------------------------------

    def _drengine(self, *arguments: str) -> Any:
        return self._site.run("drengine.cli.main", *arguments)

    def _agent_status(self) -> Any:
        return self._site.run("drengine_agent", "status", "--config", "agent.toml")

    def _fenced_status(self) -> Any:
        try:
            status = self._agent_status()
        except StoryFailed:
            return None  # it is still starting
        return status if status["reason"] == "fenced" else None

    def _protected_status(self) -> Any:
        status = self._agent_status()
        return status if status["state"] == "CONTINUOUS" else None

    def _store_facts(self) -> Any:
        """What a drill must leave alone."""
        branches = self._drengine("branches", "--store", "store")
        return [(each["number"], each["generation"], each["active"]) for each in branches if not each["closed"]]

    def _points(self) -> list[dict[str, Any]]:
        try:
            points: list[dict[str, Any]] = self._drengine("points", "--store", "store")
        except StoryFailed:
            return []  # the source is not known yet
        return points

    def _stamped(self) -> list[float]:
        return acknowledged_writes(self._folder / "acknowledged")

    def _orders(self, where: str) -> dict[int, float]:
        return confirmed_orders(self._folder / f"orders-{where}")

    def _send_customers(self, where: str, port: int) -> None:
        url = f"http://127.0.0.1:{port}/orders"
        self._site.start_loose(f"customers-{where}", "demo.customers", url, str(self._folder / f"orders-{where}"))

    def _pass_time(self, seconds: float) -> None:
        begun = time.monotonic()
        self._site.wait("time passes", lambda: time.monotonic() - begun > seconds)

    def _check(self, slots: Slots, point: str) -> Prefix:
        """Compare both stamped volumes of a point with the only state they may show."""
        volumes = {name: self._export(name, point) for name in STAMPED}
        try:
            return self._prefix(volumes, slots)
        finally:
            for client in volumes.values():
                client.close()

    def _prefix(self, volumes: dict[str, NbdClient], slots: Slots) -> Prefix:
        return check_prefix(
            lambda name, offset, length: bytes(volumes[name].read(offset, length)),
            list(slots.places),
            self.outcome.seed,
            self.outcome.acknowledged_writes,
        )

    def _clean(self, point: str) -> bool:
        image = self._folder / "recovered.img"
        with self._export("data", point) as data, image.open("wb") as copy:
            for offset in range(0, data.size_bytes, READ_BYTES):
                copy.write(data.read(offset, min(READ_BYTES, data.size_bytes - offset)))
        return filesystem_clean(image)

    def _export(self, volume: str, point: str) -> NbdClient:
        return NbdClient(str(self._folder / "recovery.sock"), f"{SOURCE}/{volume}@{point}")


def free_port() -> int:
    """A loopback port that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _serves(path: Path) -> bool:
    """Whether the tap gives anybody the shop's disk."""
    try:
        NbdClient(str(path), "orders", timeout_seconds=5).close()
    except Exception:  # noqa: BLE001 - no socket, a refusal, a closed connection: all say no
        return False
    return True


def _older(points: list[dict[str, Any]], acknowledged: list[float]) -> str:
    """Id of the point from about the middle of the writing."""
    middle = acknowledged[len(acknowledged) // 2] * 1e9
    return str(points[min(bisect.bisect([point["time_ns"] for point in points], middle), len(points) - 2)]["id"])
