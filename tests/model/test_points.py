"""What a person may call a point, and what that finds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drengine.model.errors import BAD_LABEL, BAD_POINT, DrengineError
from drengine.model.points import PointSelector, check_new_label
from drengine.terminal import exact_time, human_time

MOMENTS = st.integers(0, 4_000_000_000 * 10**9)
SECOND = 10**9
T10 = int(datetime(2026, 11, 23, 10, tzinfo=UTC).timestamp()) * SECOND


@given(MOMENTS)
def test_a_shown_time_finds_the_point_that_it_was_shown_for(time_ns: int) -> None:
    for shown in (human_time(time_ns), exact_time(time_ns)):
        for text in (shown, f"before:{shown}"):
            found = PointSelector.parse(text)
            assert found.fits(time_ns, "")
            assert found.before_ns is not None and found.before_ns - time_ns < 10**6


@given(MOMENTS)
def test_a_shown_time_finds_no_later_point_that_is_shown_otherwise(time_ns: int) -> None:
    later = (time_ns // 10**6 + 1) * 10**6
    assert not PointSelector.parse(human_time(time_ns)).fits(later, "")
    assert not PointSelector.parse(exact_time(time_ns)).fits(time_ns + 1, "")


@pytest.mark.parametrize(
    ("text", "last_ns"),
    [
        ("2026-11-23T10:00:00.123456789Z", T10 + 123456789),
        ("2026-11-23T10:00:00.123Z", T10 + 124 * 10**6 - 1),
        ("2026-11-23 10:00:00,1", T10 + 200 * 10**6 - 1),
        ("2026-11-23T10:00:00Z", T10 + SECOND - 1),
        ("20261123T100000Z", T10 + SECOND - 1),
        ("2026-11-23T12:00:00.5+02:00", T10 + 600 * 10**6 - 1),
        ("2026-11-23T10:00Z", T10),
        ("2026-11-23T12:00+0200", T10),
        ("2026-11-23", T10 - 10 * 3600 * SECOND),
    ],
)
def test_a_time_to_the_second_or_finer_stands_for_all_of_its_last_digit(text: str, last_ns: int) -> None:
    assert PointSelector.parse(text) == PointSelector.parse(f"before:{text}") == PointSelector(before_ns=last_ns)


@given(MOMENTS, st.integers(-14 * 60, 14 * 60))
def test_the_zone_in_which_a_time_is_written_does_not_matter(time_ns: int, minutes: int) -> None:
    there = datetime.fromtimestamp(time_ns // SECOND, timezone(timedelta(minutes=minutes)))
    assert PointSelector.parse(there.isoformat()).before_ns == time_ns // SECOND * SECOND + SECOND - 1


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("latest", PointSelector()),
        ("1-5", PointSelector(branch=1, sequence=5)),
        ("label:1-5", PointSelector(label="1-5")),
        ("label:latest", PointSelector(label="latest")),
        ("label:20261125", PointSelector(label="20261125")),
        ("label:label:x", PointSelector(label="label:x")),
        ("nightly", PointSelector(label="nightly")),
        ("0-5", PointSelector(label="0-5")),
        ("../../etc/passwd", PointSelector(label="../../etc/passwd")),
    ],
)
def test_what_is_neither_latest_nor_an_id_nor_a_time_is_a_label(text: str, found: PointSelector) -> None:
    assert PointSelector.parse(text) == found


@pytest.mark.parametrize("text", ["", " ", "a\nb", "x" * 300, "label:", "label: ", "before:yesterday", "before:"])
def test_what_can_be_none_of_these_is_refused(text: str) -> None:
    with pytest.raises(DrengineError) as caught:
        PointSelector.parse(text)
    assert caught.value.kind is BAD_POINT


LOOKALIKES = ("20261125", "2026-11-25", "2026-W48-1", "2026-11-25T10:00", "latest", "1-5", "before:x", "label:x", " ")


@pytest.mark.parametrize("label", [*LOOKALIKES, "x" * 201, "a\x1b[2J"])
def test_a_new_point_is_not_called_what_would_be_read_as_something_else(label: str) -> None:
    with pytest.raises(DrengineError) as caught:
        check_new_label(label)
    assert caught.value.kind is BAD_LABEL


@given(st.text(max_size=250))
def test_a_point_is_found_by_any_label_that_it_may_have(label: str) -> None:
    try:
        check_new_label(label)
    except DrengineError:
        return
    assert not label or PointSelector.parse(label) == PointSelector.parse(f"label:{label}") == PointSelector(
        label=label
    )
