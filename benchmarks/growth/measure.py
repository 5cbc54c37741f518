"""What is measured of a store of one size. Each function answers figures by name; times are in seconds."""

from __future__ import annotations

import resource
import shutil
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.growth.shape import BRANCH, GENERATION, NOW, NS, Shape, fill, mark, name_of
from benchmarks.growth.synthetic import SyntheticStorage
from drengine.fleet.look import _in_store
from drengine.model.clock import SystemClock
from drengine.model.points import Cut, PointKind, PointSelector
from drengine.store.care.liveness import BranchRoots, branch_roots, to_judge
from drengine.store.care.looks import Looks
from drengine.store.care.retention import RetentionPolicy
from drengine.store.catalogue.rows import BranchRow, JudgementRow, pack_roots
from drengine.store.options import StoreOptions
from drengine.store.rebuild.manifest import write_manifest
from drengine.store.store import Store
from drengine.target.metrics import TargetMetrics
from drengine.target.sources import Sources

Figures = dict[str, float]
PASS_SECONDS = 60
"""From one pass of retention to the next; so many points of each source have come in between."""
COMPACTION_SECONDS = 300
DAY_SECONDS = 86_400
OPTIONS = replace(StoreOptions(), compact_dead_fraction=2.0)
"""Nothing is written anew: what rewriting costs depends on what died, not on the size of the store."""


class Clock(SystemClock):
    """The machine's, but that it is the moment at which the sources are looked at."""

    def __init__(self) -> None:
        self.later_ns = 0

    def now_ns(self) -> int:
        """See Clock."""
        return NOW * NS + self.later_ns


class Site:
    """A store of so many sources in a directory, and what is asked of it."""

    def __init__(self, directory: Path, shape: Shape, sources: int, samples: int, catalogue: str = "") -> None:
        """Make it. `samples`: of how many sources something is measured that is done for one at a time.

        `catalogue`: URL of an empty database of PostgreSQL; empty: SQLite.
        """
        self.path = directory / f"store-{sources}"
        shutil.rmtree(self.path, ignore_errors=True)
        self.shape = shape
        self.names = [name_of(number) for number in range(sources)]
        self.sampled = self.names[:: max(1, sources // samples)][:samples]
        self.clock = Clock()
        with Store.create(self.path, catalogued_in=catalogue) as store:
            fill(store.context.catalogue, shape, sources)
            identity = store.identity
        for name in self.names:
            (self.path / "locks" / f"branch-{name}-{BRANCH:08d}.lock").touch()
        self.storage = SyntheticStorage(self.path, identity, shape, frozenset(self.names))

    @contextmanager
    def opened(self) -> Iterator[Store]:
        """The store, opened as a target does."""
        with Store.open(self.path, storage=self.storage, options=OPTIONS, clock=self.clock) as store:
            yield store

    def requests(self, work: Callable[[], Any], name: str) -> Figures:
        """How long something takes, without making segments up, and what it asks of the storage."""
        before, made = self.storage.requests, self.storage.made_seconds
        seconds = timed(work) - (self.storage.made_seconds - made)
        asked = self.storage.requests.since(before)
        return {f"{name}_seconds": seconds, **{f"{name}_{what}": count for what, count in asked.items()}}


def timed(work: Callable[[], Any]) -> float:
    """Seconds that it takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def measure(
    directory: Path, shape: Shape, sources: int, samples: int = 10, *, compacts: bool = True, catalogue: str = ""
) -> Figures:
    """Everything, of one size; in a process of its own, because of the memory."""
    site = Site(directory, shape, sources, samples, catalogue)
    idle = _resident_bytes()
    found: Figures = {
        "sources": sources,
        "rows": sources * sum(1 for _ in shape.rows(name_of(0))),
        "segments": sources * len(shape.spans),
        "points": sources * len(shape.kept_now),
        "indexes_read_a_day": sources * indexes_read_a_day(shape),
        "stored_bytes": float(sources * shape.stored_bytes),
        "catalogue_bytes": 0 if catalogue else (site.path / "catalogue.sqlite").stat().st_size,
    }
    found["reference_commit_seconds"] = _reference(site.path)
    with _noted(found, "open_seconds"):
        opened = site.opened()
        store = opened.__enter__()
    try:
        found |= _starting(site, store)
        found |= _writing(site, store)
        found |= _reading(site, store)
        found |= _passes(site, store, compacts=compacts)
        found["resident_bytes"] = _resident_bytes() - idle
    finally:
        opened.__exit__(None, None, None)
    shutil.rmtree(site.path)
    return found


def _starting(site: Site, store: Store) -> Figures:
    """What a target and the commands ask for first, and again and again."""
    sources = Sources()
    found = {"load_seconds": timed(lambda: sources.load(store))}
    metrics = TargetMetrics(sources, site.clock)
    found["figures_seconds"] = timed(store.stats)
    found["fleet_seconds"] = timed(lambda: _in_store(store))
    page = metrics.metrics.render()
    found["metrics_seconds"], found["metrics_bytes"] = timed(metrics.metrics.render), len(page)
    found["set_aside_seconds"] = timed(store.set_aside)
    return found


def _writing(site: Site, store: Store) -> Figures:
    """Taking sources over, and commits of one small batch and a point."""
    cut = Cut(NOW * NS, PointKind.WRITE_ORDER, "")
    writers, took, commits = [], [], []
    try:
        for name in site.sampled:
            begun = time.perf_counter()
            writers.append(store.writer(name, generation=GENERATION))
            took.append(time.perf_counter() - begun)
        for number in range(1, 11):
            for writer in writers:
                sequence = site.shape.head + number
                writer.append_cut(sequence, mark(sequence), cut, generation=GENERATION)
                commits.append(timed(partial(writer.commit, generation=GENERATION)))
    finally:
        for writer in writers:
            # What it has not committed keeps it from sealing its segment, and so from making all layers.
            writer.append_cut(sequence + 1, mark(sequence + 1), cut, generation=GENERATION)
            writer.close()
    return {"takeover_seconds": statistics.median(took), "commit_seconds": statistics.median(commits)}


def _reading(site: Site, store: Store) -> Figures:
    """Opening a point of one source: without any layer, then by a process that has opened none."""
    source = site.sampled[-1]
    found: Figures = {}

    def open_newest(held: Store) -> None:
        held.view(held.find_point(source, PointSelector())).close()

    found |= site.requests(lambda: open_newest(store), "first_point")
    with site.opened() as fresh:
        found |= site.requests(lambda: open_newest(fresh), "point")
        found["point_again_seconds"] = timed(lambda: open_newest(fresh))
    return found


def _passes(site: Site, store: Store, *, compacts: bool) -> Figures:
    """Turns of maintenance, as much later as two turns are apart.

    Of retention a turn at which no manifest is due, one at which that of every source is (one of ten), and one at which
    no source has changed. Of compaction the first of a process, which finds that nothing is to be done; one at which
    each source's catalogue has changed since; one at which nothing has; and then what it costs to judge one source
    again at the dearest turn of an hour, when points of ten minutes and of an hour go.
    """
    looks = Looks()
    catalogue, context = store.context.catalogue, store.context
    found = site.requests(lambda: write_manifest(context, site.sampled[0]), "manifest")
    for turn, name in enumerate(("retention", "retention_with_manifests")):
        with catalogue.transaction():
            for source in site.names:
                begun = turn * PASS_SECONDS + 1
                catalogue.put(*(site.shape.point(source, NOW + age) for age in range(begun, begun + PASS_SECONDS)))
        now_ns = context.clock.now_ns()
        context.manifests_ns.update(dict.fromkeys(site.names, 0 if turn else now_ns))
        site.clock.later_ns += PASS_SECONDS * NS
        found |= site.requests(lambda: store.retain(RetentionPolicy(), site.clock.now_ns(), looks), name)
    store.retain(RetentionPolicy(), site.clock.now_ns(), looks)  # it finds nothing to do
    found |= site.requests(lambda: store.retain(RetentionPolicy(), site.clock.now_ns(), looks), "retention_idle")
    if not compacts:
        return found
    before, now = (pack_roots(roots) for roots in (roots_at(site.shape, NOW), _roots(store, site.names[-1])))
    with catalogue.transaction():
        catalogue.put(*(JudgementRow(source, BRANCH, now) for source in site.names if source not in site.sampled))
    heads = [JudgementRow(source, BRANCH, pack_roots(_roots(store, source))) for source in site.sampled]
    with catalogue.transaction():
        catalogue.put(*heads)  # these wrote: they have another head
    found |= site.requests(lambda: store.compact(looks=looks), "compaction")
    _note_verification(store, site.names)
    found |= site.requests(lambda: store.compact(looks=looks), "compaction_changed")
    found |= site.requests(lambda: store.compact(looks=looks), "compaction_idle")
    judged = site.sampled[: max(1, len(site.sampled) // 3)]
    with catalogue.transaction():
        for source in judged:
            catalogue.put(JudgementRow(source, BRANCH, before))
    again = site.requests(lambda: store.compact(looks=looks), "judging")
    seconds = (again.pop("judging_seconds") - found["compaction_idle_seconds"]) / len(judged)
    return found | {"judging_seconds": max(0.0, seconds), "judging_opens": again["judging_opens"] / len(judged)}


def _note_verification(store: Store, names: list[str]) -> None:
    """Of each source, which changes its catalogue and no root: what is new in segments is `judging`."""
    catalogue = store.context.catalogue
    with catalogue.transaction():
        for name in names:
            catalogue.put(catalogue.points(name)[0]._replace(verified_ns=NOW * NS))


def _roots(store: Store, source: str) -> list[int]:
    """What compaction looks from now."""
    catalogue = store.context.catalogue
    (roots,) = branch_roots(catalogue, catalogue.branches(source), ())
    return roots.positions


def roots_at(shape: Shape, now: int) -> list[int]:
    """What compaction looks from: the kept points and the head."""
    return sorted({*map(shape.position, shape.kept(now)), min(shape.position(now), shape.head)})


def indexes_read_a_day(shape: Shape) -> int:
    """How many indexes of segments the passes of the last day looked at, by compaction's own rule."""
    found, before = 0, roots_at(shape, NOW - DAY_SECONDS)
    branch = next(row for row in shape.rows("any") if isinstance(row, BranchRow))
    every = list(shape.segments("any"))
    for now in range(NOW - DAY_SECONDS + COMPACTION_SECONDS, NOW + 1, COMPACTION_SECONDS):
        head, roots = shape.position(now), roots_at(shape, now)
        segments = [row for row in every if row.first_sequence <= head]
        wanted = to_judge(BranchRoots(branch, roots), before, segments, np.zeros(len(segments), bool))
        found += int(wanted.looked_at.sum())
        before = roots
    return found


def _reference(directory: Path) -> float:
    """Of a bare SQLite database: a transaction of one small row, on the same disk."""
    path = directory / "reference.sqlite"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE one (number INTEGER PRIMARY KEY, data BLOB)")
    seconds = [
        timed(partial(db.execute, "INSERT INTO one VALUES (?, ?)", (number, bytes(200)))) for number in range(50)
    ]
    db.close()
    path.unlink()
    return statistics.median(seconds)


@contextmanager
def _noted(found: Figures, name: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    found[name] = time.perf_counter() - begun


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()
