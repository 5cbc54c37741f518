"""Killed at each order of a conversion, and around its journal: the run ends as if nobody had been."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conversion.killing import Death, Ended, Site, site
from tests.conversion.mini import VERSION, needs_helper

pytestmark = [pytest.mark.timeout(7200), pytest.mark.campaign]
JOURNAL = ("before its intent", "after its intent", "before its result", "after its result")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    needs_helper()
    with site(tmp_path_factory.mktemp("kills")) as made:
        yield made


@pytest.fixture(scope="module")
def peace(place: Site) -> Ended:
    """What a run makes in which nobody dies."""
    ended = place.round(None)
    assert {each["what"] for each in ended.told["changes"]} >= {"fstab", "network", "initramfs", "boot-loader"}
    assert ended.orders > 15 and "virtio_blk" in ended.disk[f"/boot/initrd.img-{VERSION}"]
    return ended


@pytest.mark.fault(57)
@pytest.mark.parametrize("who", ["orchestrator", "helper"])
def test_killed_at_each_order_the_run_ends_the_same(place: Site, peace: Ended, who: str) -> None:
    for number in range(1, peace.orders + 1):
        ended = place.round(Death(who, number))
        assert ended.told == peace.told, f"{who} killed at order {number}"
        assert ended.disk == peace.disk, f"{who} killed at order {number}"


@pytest.mark.fault(57)
@pytest.mark.parametrize("position", range(4), ids=JOURNAL)
def test_killed_around_an_entry_of_the_journal_the_run_ends_the_same(place: Site, peace: Ended, position: int) -> None:
    ended = place.round(Death("journal", position))
    assert (ended.told, ended.disk) == (peace.told, peace.disk)
    page = (place.directory / "state" / "reports" / f"{ended.run}.html").read_text()
    assert "/etc/fstab" in page


def test_a_run_that_is_given_up_leaves_nothing_behind(place: Site) -> None:
    place.life("drill", str(place.directory / "shop.yaml"), death=Death("orchestrator", 14))
    run = place.left()
    assert place.life("abort", run) == 0
    place.life("run", "resume", run)
    place.look_around()
