"""The works measure a real store and real daemons: what they copied is compared before a figure is believed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.bench import Bench
from benchmarks.image import change_random, make_image
from benchmarks.site import SiteFailedError, check_replica
from benchmarks.streams import SOURCE, VOLUME, write_stream
from drengine.model.points import PointSelector
from drengine.store.store import Store

MIB = 1 << 20


def test_a_stream_written_for_a_measurement_reads_back_whole(tmp_path: Path) -> None:
    offsets = np.random.default_rng(3).permutation(np.arange(700, dtype=np.uint64)) * np.uint64(8192)
    write_stream(tmp_path / "store", 700 * 8192, offsets, 4096)
    with Store.open(tmp_path / "store") as store, store.view(store.find_point(SOURCE, PointSelector())) as view:
        extents = list(view.extents(VOLUME))
        assert sum(length for _, length, kind in extents if kind == "data") == 700 * 4096
        assert view.read(VOLUME, 8192 * 699, 4096) == b"drengine" * 512


def test_the_same_seed_makes_the_same_image(tmp_path: Path) -> None:
    for name in "ab":
        make_image(tmp_path / name, 4 * MIB, seed=5)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").stat().st_blocks * 512 >= 4 * MIB


def test_a_replica_that_differs_has_no_speed(tmp_path: Path) -> None:
    """The comparison after a copy finds one changed block, so a wrong copy can't be reported as a quick one."""
    image = tmp_path / "image.img"
    make_image(image, 4 * MIB)
    bench = Bench(tmp_path)
    with bench.site(bench.fresh("site")) as here:
        target = here.start_target()
        here.start_agent(target, "source", {"disk": image})
        target.wait_point("source", 0)
        check_replica(target, "source", image)
        change_random(image, 0.001, seed=1)
        with pytest.raises(SiteFailedError, match="differs"):
            check_replica(target, "source", image)
    assert [peak > 8 * MIB for peak in bench.target_peaks] == [True], "the target's memory was not noted"
