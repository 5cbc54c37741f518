"""`make fuzz`: strangers and misbehaving parties at living daemons, while honest ones are measured.

First the honest ones are alone for a while, then all attacks come at once. At the end the daemons live, none of them
has taken more memory than it may or logged a traceback, connections are given back, the store is intact, the victim's
point shows every write that was acknowledged, and nobody else's data grew but that of who has a certificate to ship.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from demo.files import SOURCE
from demo.site import StoryFailed
from drengine.enrolment.client import enrol
from drengine.enrolment.place import Place as Home
from drengine.identity.tokens import Invitation
from tests.field.ground import TRACEBACK
from tests.fuzz import honest, place, strangers
from tests.fuzz.place import DRENGINE
from tests.fuzz.watch import Latency, Watch

MIB = 1 << 20
MEMORY_BYTES_MAX = {"target": 900 * MIB, "orchestrator": 500 * MIB, "authority": 200 * MIB}
DESCRIPTORS_MAX = 1200
LEFT_OPEN_MAX = 40
GIVEN_BACK_SECONDS = 40.0
ACK_SECONDS_MAX = 1.0
FIRST_SECONDS = 60.0
END_SECONDS = 60.0
REFUSED = re.compile(r'(?:ended, |"reason": "|refused to [a-z]+: .*\[)([a-z]+(?:-[a-z]+)+)')
FORK = multiprocessing.get_context("fork")


@dataclass
class Outcome:
    """What a campaign found.

    Attributes:
        load: of the machine over the last minute, as it began and ended, with its processors.
        honest: latencies by who it is, `alone` and `attacked`.
        failures: what failed for the honest ones, and how often.
        told: what the attackers were told, by attack and id.
        refusals: in the daemons' logs, by daemon and id.
        problems: what must not be.
    """

    seed: int
    seconds: float
    load: list[float] = field(default_factory=list)
    processors: int = os.cpu_count() or 1
    honest: dict[str, dict[str, Latency]] = field(default_factory=dict)
    failures: dict[str, dict[str, int]] = field(default_factory=dict)
    daemons: dict[str, dict[str, Any]] = field(default_factory=dict)
    told: dict[str, dict[str, int]] = field(default_factory=dict)
    refusals: dict[str, dict[str, int]] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)
    writes: int = 0
    problems: list[str] = field(default_factory=list)


class Campaign:
    """One campaign in one folder."""

    def __init__(self, folder: Path, outcome: Outcome, *, only: str, strict: bool) -> None:
        self._folder, self._outcome, self._strict = folder, outcome, strict
        self._attacks = [name for name in strangers.ATTACKS if only in name]
        self._running: dict[str, BaseProcess] = {}
        self._over, self._peace = FORK.Event(), FORK.Event()
        (folder / "notes").mkdir()

    def run(self) -> None:
        """All of it; what is wrong is in the outcome's problems.

        Raises:
            StoryFailed: it did not come to its beginning, or an honest one did not come to its end.
        """
        outcome = self._outcome
        outcome.load.append(round(os.getloadavg()[0], 2))
        self._place = site = place.start(self._folder)
        watch = Watch({name: each.pid for name, each in site.daemons.items()})
        try:
            self._begin_honest()
            watch.start()
            begun = self._be_alone(watch)
            for number, name in enumerate(self._attacks):
                self._start(f"attack {number}", self._attack, name, self._peace)
            time.sleep(outcome.seconds)
            ended = time.monotonic()
            self._end(self._peace, "attack")
            self._enrol_late()
            self._wait_for_descriptors(watch)
            self._end(self._over, "")
            watch.stop()
            self._note(watch, begun, ended)
            self._judge_store()
        finally:
            for process in self._running.values():
                process.kill()
            site.site.close()
        self._judge_logs()
        outcome.load.append(round(os.getloadavg()[0], 2))

    # ---- processes -------------------------------------------------------------------------------------------

    def _start(self, name: str, run: Callable[..., None], *arguments: object) -> None:
        process = self._running[name] = FORK.Process(target=run, args=arguments, name=name)
        process.start()

    def _honest(self, name: str) -> None:
        notes = honest.Notes()
        honest.HONEST[name](self._place, notes, self._over)
        (self._folder / "notes" / name).write_text(json.dumps(asdict(notes)))

    def _attack(self, name: str, stop: Event) -> None:
        told: Counter[str] = Counter()
        strangers.go_on(name, self._place, self._outcome.seed, told, stop)
        (self._folder / "notes" / f"attack {name}").write_text(json.dumps(told))

    def _begin_honest(self) -> None:
        self._start("source", self._honest, "source")
        self._place.site.wait("the first point", self._has_point, seconds=FIRST_SECONDS)
        self._place.grant()
        for name in ("reader", "user"):
            self._start(name, self._honest, name)

    def _has_point(self) -> bool:
        return bool(self._place.site.run(DRENGINE, "points", "--store", "store"))

    def _be_alone(self, watch: Watch) -> float:
        """Measure without attacks; when they began."""
        self._quiet_from = time.monotonic()
        time.sleep(max(2.0, self._outcome.seconds / 4))
        watch.look()
        self._quiet = {name: each.sockets for name, each in watch.seen.items()}
        return time.monotonic()

    def _end(self, event: Event, prefix: str) -> None:
        """Have processes come to their end."""
        event.set()
        for name in [each for each in self._running if each.startswith(prefix)]:
            process = self._running[name]
            process.join(END_SECONDS)
            if process.exitcode != 0:
                self._outcome.problems.append(f"{name} ended with {process.exitcode}")
            if process.exitcode is not None:
                del self._running[name]

    # ---- what is found ---------------------------------------------------------------------------------------

    def _enrol_late(self) -> None:
        """After all the wrong tokens the right one still counts."""
        home = Home(self._folder / "late")
        asyncio.run(enrol(Invitation.parse(self._place.invitation), "late", home))

    def _wait_for_descriptors(self, watch: Watch) -> None:
        """The attackers are gone: so are their connections, soon."""

        def given_back() -> bool:
            return all(each.sockets <= self._quiet[name] + LEFT_OPEN_MAX for name, each in watch.seen.items())

        try:
            self._place.site.wait("connections are given back", given_back, seconds=GIVEN_BACK_SECONDS)
        except StoryFailed:
            counts = {name: (self._quiet[name], each.sockets) for name, each in watch.seen.items()}
            self._outcome.problems.append(f"sockets before and after: {counts}")

    def _note(self, watch: Watch, begun: float, ended: float) -> None:
        outcome = self._outcome
        for path in sorted((self._folder / "notes").iterdir()):
            found = json.loads(path.read_text())
            if path.name.startswith("attack "):
                outcome.told[path.name.removeprefix("attack ")] = found
                continue
            outcome.honest[path.name] = {
                when: Latency.of(took for at, took in found["taken"] if first <= at < last)
                for when, first, last in (("alone", self._quiet_from, begun), ("attacked", begun, ended))
            }
            outcome.failures[path.name] = found["failures"]
            outcome.writes = max(outcome.writes, found["done"])
        for name, process in self._place.daemons.items():
            seen = watch.seen[name]
            outcome.daemons[name] = asdict(seen)
            if process.poll() is not None:
                outcome.problems.append(f"{name} ended with {process.returncode}")
            if seen.resident_bytes_max > MEMORY_BYTES_MAX[name]:
                outcome.problems.append(f"{name} took {seen.resident_bytes_max >> 20} MiB")
            if seen.descriptors_max > DESCRIPTORS_MAX:
                outcome.problems.append(f"{name} had {seen.descriptors_max} descriptors")
        if self._strict:
            self._judge_honest()

    def _judge_honest(self) -> None:
        longest = self._outcome.honest["source"]["attacked"].longest
        if longest > ACK_SECONDS_MAX:
            self._outcome.problems.append(f"an acknowledgement took {longest:.2f} s")
        for name, failures in self._outcome.failures.items():
            self._outcome.problems += [f"{name}: {what}, {times} times" for what, times in failures.items()]

    def _judge_store(self) -> None:
        """It is intact, shows the victim's writes, and holds nobody's data who may not ship."""
        site, problems = self._place.site, self._outcome.problems
        status = site.stop(self._place.daemons["target"])
        if status:
            problems.append(f"the target ended with {status}")
        for source in site.run(DRENGINE, "source", "list", "--store", "store"):
            self._outcome.sources[source["source"]] = source["volume_bytes"]
        if strange := set(self._outcome.sources) - {SOURCE, *place.WEBS}:
            problems.append(f"sources of nobody: {sorted(strange)[:5]}")
        verified = site.run(DRENGINE, "verify", "latest", "--source", SOURCE, "--store", "store")
        if not verified["intact"]:
            problems.append(f"the victim's point is damaged: {verified}")
        site.run(DRENGINE, "scrub", "--store", "store")
        copy = self._folder / "copy.img"
        site.run(DRENGINE, "restore", "latest", "--source", SOURCE, "--store", "store", "--to", f"data={copy}")
        if copy.read_bytes() != honest.image(self._outcome.writes):
            problems.append("the victim's newest point is not what it had acknowledged")

    def _judge_logs(self) -> None:
        for name in self._place.daemons:
            log = (self._folder / f"{name}.log").read_text(errors="replace")
            self._outcome.refusals[name] = dict(Counter(REFUSED.findall(log)))
            if "Traceback (most recent call last)" in log or TRACEBACK.search(log):
                at = log.index("Traceback")
                self._outcome.problems.append(f"{name} logged a traceback: {log[max(0, at - 500) : at + 2500]}")


def shown(outcome: Outcome) -> str:
    """The outcome as the page has it."""
    load = " to ".join(map(str, outcome.load))
    lines = [
        f"seed {outcome.seed}, {outcome.seconds:g} s of attacks; load {load} on {outcome.processors} processors",
        "",
    ]
    lines += ["| who | alone: p50, p99, max | attacked: p50, p99, max | failed |", "|---|---|---|---|"]
    for name, found in outcome.honest.items():
        cells = [f"{each.p50:.3f}, {each.p99:.3f}, {each.longest:.3f} s" for each in found.values()]
        lines.append(f"| {name} | {' | '.join(cells)} | {sum(outcome.failures[name].values())} |")
    lines += ["", "| daemon | resident at most | descriptors at most | afterwards |", "|---|---|---|---|"]
    for name, seen in outcome.daemons.items():
        at_most = f"{seen['resident_bytes_max'] >> 20} MiB"
        lines.append(f"| {name} | {at_most} | {seen['descriptors_max']} | {_counted(seen['open'])} |")
    for name, refused in outcome.refusals.items():
        lines.append(f"\n{name} refused: {_counted(refused)}")
    lines += ["", "| attack | what it was told |", "|---|---|"]
    for name, told in outcome.told.items():
        lines.append(f"| {name} | {_counted(told)} |")
    lines += ["", f"{outcome.writes} writes acknowledged; sources {outcome.sources}"]
    lines += [
        f"{name}: {what}, {times} times" for name, found in outcome.failures.items() for what, times in found.items()
    ]
    return "\n".join([*lines, *(f"PROBLEM: {each}" for each in outcome.problems)])


def _counted(found: dict[str, int]) -> str:
    return ", ".join(f"{what} {times}" for what, times in Counter(found).most_common(9))


def main() -> int:
    """Run it; exit status 1 when something was as it must not be, with the seed to repeat it."""
    parser = argparse.ArgumentParser(prog="make fuzz")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--seconds", type=float, default=60.0, help="of attacks")
    parser.add_argument("--only", default="", help="attacks with this in their name")
    parser.add_argument("--loose", action="store_true", help="judge no latency: the machine is busy")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    parser.add_argument("--keep", action="store_true", help="leave the folder")
    options = parser.parse_args()
    if not any(options.only in name for name in strangers.ATTACKS):
        parser.error(f"no attack has {options.only!r} in its name")
    outcome = Outcome(options.seed, options.seconds)
    folder = Path(tempfile.mkdtemp(prefix="drengine-fuzz-"))
    print(f"seed {options.seed}, folder {folder}", file=sys.stderr, flush=True)
    try:
        Campaign(folder, outcome, only=options.only, strict=not options.loose).run()
    except StoryFailed as failure:
        outcome.problems.append(str(failure))
    finally:
        if not (options.keep or outcome.problems):
            shutil.rmtree(folder, ignore_errors=True)
    shape: dict[str, Any] = asdict(outcome)
    print(json.dumps(shape) if options.json else shown(outcome), flush=True)
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
